"""Fuzz the code that reads untrusted input; needs hypothesis, no data and no network.

    python scripts/fuzz.py target=picture|checkpoint|overrides
    python scripts/fuzz.py target=picture minutes=10 seed=0 out=FOLDER

* picture: files of every format with changed, cut or spliced bytes and overwritten length fields, read by ``read_rgb``;
* checkpoint: run folders with a changed checkpoint, config or stored latents, read by ``read_checkpoint``, ``load_run`` and
  ``read_latents``;
* overrides: command lines of train, sample, evaluate and split, passed to the checks before anything is imported.

Every example must return a value or raise the intended error, with a message of one line below 2,000 characters, within 10
seconds of CPU time and 2 GB of memory, without writing outside a scratch folder and without starting a process. One finding of
each kind is printed and written to FOLDER, minimised by Hypothesis; known kinds do not hide others. The exit status is 1 if
there are findings.
"""

import contextlib
import io
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from PIL import ExifTags, Image

from flowergen.app.command_schema import Evaluate, Sample, Split
from flowergen.app.plain_command import read_command_line
from flowergen.app.train_command import prepare_train
from flowergen.data.reading import UnreadablePicture, fit_picture, read_rgb
from flowergen.errors import UserError, one_line
from flowergen.picture_shape import PictureShape

MAX_MESSAGE_LENGTH = 2000
MAX_SECONDS = 10  # of CPU time
MAX_MEMORY = 2 * 2**30
STARTS_A_PROCESS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")


class Hang(BaseException):
    """The time limit was exceeded. Not an ``Exception``, so that no handler catches it."""


class Finding(Exception):
    """An example revealed a fault."""


# ---- Restrictions ----------------------------------------------------------------------------------------------------
class Watch:
    """State of the audit hook, see ``watching``. Audit hooks cannot be removed, so there is one for the process."""

    scratch: str | None = None  # where files may be written; None while the hook is inactive
    strict = True
    violations: list[str]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if Watch.scratch is None:
        return
    if event in STARTS_A_PROCESS:
        Watch.violations.append(f"{event} {arguments!r:.200}")
        raise PermissionError(1, "refused by the fuzzer")
    writes = event in WRITES
    if event == "open":
        writes = bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(
            m in (arguments[1] or "") for m in "wax+"
        )
    path = arguments[0] if arguments and isinstance(arguments[0], str | bytes | os.PathLike) else None
    if not writes or path is None:
        return
    within = arguments[-1] if event in ("os.remove", "os.rmdir") and arguments[-1] >= 0 else None  # the descriptor of a folder
    place = os.path.abspath(os.path.join("" if within is None else os.readlink(f"/proc/self/fd/{within}"), os.fsdecode(path)))
    if not f"{place}/".startswith((f"{Watch.scratch}/", "/dev/null/")):
        if Watch.strict:
            Watch.violations.append(f"{event} {place:.200}")
        raise PermissionError(1, "refused by the fuzzer")


@contextlib.contextmanager
def watching(scratch: Path, strict: bool = True) -> Iterator[None]:
    """Refuse and record the start of processes and, if strict, writes outside the folder, which are refused anyway."""
    if not hasattr(Watch, "violations"):
        sys.addaudithook(_audit)
    Watch.violations, Watch.strict, Watch.scratch = [], strict, os.path.realpath(scratch)
    try:
        yield
    finally:
        Watch.scratch = None


def _memory(key: str) -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(key))


def _hang(*_: object) -> None:
    raise Hang


def examine(check: Callable[[], object], expected: type[Exception], scratch: Path, strict: bool = True) -> str | None:
    """Run one example, which may raise the expected error and write to scratch, see ``watching``.

    Returns:
        A description of the fault, or None. The part before the colon is its kind.
    """
    wrong, error = None, None
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of memory
    before, start = _memory("VmRSS"), time.process_time()
    signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        with watching(scratch, strict), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            check()
    except Hang:
        wrong = "hang: "
    except expected as raised:
        error = raised
        text = one_line(raised) if isinstance(raised, UserError) else str(raised)
        if len(text) >= MAX_MESSAGE_LENGTH or len(text.splitlines()) != 1 or not text.isprintable():
            fault = "unprintable" if not text.isprintable() else "long" if text else "empty"
            wrong = f"{fault} message: {text[:300]!r}"
    except SystemExit as raised:
        wrong = f"exit {raised.code}: " if raised.code else None
    except Exception as raised:
        error = raised
        frames = [frame for frame in traceback.extract_tb(raised.__traceback__) if "flowergen" in frame.filename]
        where = f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "?"
        wrong = f"{type(raised).__name__} in {where}: {str(raised)[:300]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    while error is not None:
        if isinstance(error, MemoryError):
            wrong = wrong or "asks for more memory than there is: "
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if Watch.violations:
        wrong = f"{Watch.violations[0].split(' ')[0]}: {Watch.violations}"
    if time.process_time() - start > MAX_SECONDS:
        wrong = wrong or "hang: "
    if _memory("VmHWM") - before > MAX_MEMORY:
        wrong = wrong or "memory: "
    return wrong


# ---- Damage to bytes -------------------------------------------------------------------------------------------------
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """Draw a file with up to six changes, most of them near its beginning, where the headers are."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 6))):
        reach = draw(st.sampled_from([64, 512, len(data)]))
        at = draw(st.integers(0, max(0, min(reach, len(data)) - 1)))
        match draw(st.sampled_from(["byte", "bit", "field", "cut", "splice", "repeat", "delete"])):
            case "byte" if data:
                data[at] = draw(st.integers(0, 255))
            case "bit" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "field":
                width, order = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from(["little", "big"]))
                data[at : at + width] = (draw(st.sampled_from(EXTREMES)) % 256**width).to_bytes(width, order)
            case "cut":
                del data[at:]
            case "splice":
                other = draw(st.sampled_from(files))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 256))] * draw(st.integers(1, 20))
            case "delete":
                del data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


# ---- Pictures --------------------------------------------------------------------------------------------------------
def picture_files() -> list[bytes]:
    """Create small files of every format and most of its variants."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette, deep = rgb.convert("P"), Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "flowergen"
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *[(image, "JPEG", {}) for image in (rgb, grey, rgb.convert("CMYK"))],
        (rgb, "JPEG", {"progressive": True, "exif": exif, "icc_profile": b"profile" * 9, "comment": b"text"}),
        *[(image, "PNG", {}) for image in (rgb, rgba, grey, palette, deep, rgba.convert("LA"), grey.convert("1"))],
        (palette, "PNG", {"transparency": bytes(range(200))}),
        (rgb, "PNG", {"transparency": (1, 2, 3), "exif": exif, "icc_profile": b"profile" * 9}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(180)], "duration": 9}),
        (rgb, "WEBP", {"exif": exif}),
        (rgba, "WEBP", {"lossless": True}),
        (rgba, "WEBP", {"save_all": True, "append_images": [rgba.rotate(180)]}),
        (palette, "GIF", {"transparency": 3}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(180)], "comment": b"text"}),
        *[(image, "BMP", {}) for image in (rgb, rgba, grey, palette, grey.convert("1"))],
        *[(rgb, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
        *[(grey.convert("1"), "TIFF", {"compression": name}) for name in ("group3", "group4")],
        *[(image, "TIFF", {}) for image in (deep, rgba, palette, grey.convert("F"), rgb.convert("CMYK"), rgb.convert("LAB"))],
        (rgb, "TIFF", {"save_all": True, "append_images": [grey, rgb], "exif": exif}),
        (rgb, "TIFF", {"big_tiff": True}),
        (rgb, "TIFF", {"tiffinfo": {322: 16, 323: 16}, "compression": "tiff_lzw"}),
        *[(image, "PPM", {}) for image in (rgb, grey, deep, grey.convert("1"))],
    ]
    files = []
    for image, name, options in wanted:
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        files.append(buffer.getvalue())
    rle = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 70, 0, 0, 62, 40, 4, 2, 1, 8, 1, 8, 0, 0, 2, 2) + bytes(8)
    plain = [b"P3\n2 1\n255\n1 2 3 4 5 6\n", b"P1 2 2 0 1 1 0\n", b"P2 2 1 65535 9 65535\n", b"Pf\n2 1\n-1.0\n" + bytes(8)]
    return [*files, *plain, rle + b"\x04\x01\x00\x00\x02\x00\x00\x01"]


def check_picture(data: bytes) -> None:
    """Read the data, which must give a valid picture or ``UnreadablePicture``."""
    image = read_rgb(data)
    if (image.ndim, image.shape[-1], image.dtype) != (3, 3, np.uint8) or not image.size:
        raise Finding(f"{image.shape} {image.dtype}")
    cropped, padded = fit_picture(image, PictureShape.of(16)), fit_picture(image, PictureShape.of((12, 20), 1), "pad")
    for fitted, shape in ((cropped, (3, 16, 16)), (padded, (1, 12, 20))):
        if (fitted.shape, fitted.dtype) != (shape, np.uint8):
            raise Finding(f"{fitted.shape} {fitted.dtype}")


# ---- Runs ------------------------------------------------------------------------------------------------------------
class Shell:
    """Its pickle runs a shell command when loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo flowergen",)


TINY: dict[str, tuple[str, ...]] = {
    "vae": ("model.channels=[2,4]", "model.latent_dim=2", "data.image_size=28"),
    "vae_gan": (
        *("model=vae_gan", "model.blocks.channels=[2,4]", "model.blocks.num_blocks=[0,1]", "model.perceptual=discriminator"),
        *("model.discriminator.channels=2", "data.image_size=32"),
    ),
    "latent_ddpm": (
        *("model=latent_ddpm", "model.network.channels=8", "model.network.multipliers=[1]", "model.network.num_blocks=1"),
        *("model.network.head_channels=8", "model.sampling.steps=1"),
    ),
    "decoder": ("model=decoder", "model.num_latents=4", "model.channels=2"),
}


def make_run(folder: Path, model: str, *more: str) -> Path:
    """Train for one optimiser step."""
    from flowergen.app.train_command import checked
    from flowergen.config.overrides import resolve
    from flowergen.runs.run_folder import RunFolder
    from flowergen.train import train

    run = RunFolder(folder / model)
    run.path.mkdir()
    few = ("data.num_images=40", "data.num_classes=2", "data.batch_size=4", "debug=tiny", "trainer.limit_train_batches=1")
    quiet = ("trainer.accelerator=cpu", "logger=none", "callbacks.images.every_epochs=9", f"paths.cache_dir={folder / 'cache'}")
    config = resolve(checked([*TINY[model], *few, *quiet, "~callbacks.progress", *more])[0])
    run.store(config, [])
    train(config, run)
    return run.path


def make_runs(folder: Path) -> list[Path]:
    """Create a run of each model."""
    gan = make_run(folder, "vae_gan")
    diffusion = make_run(folder, "latent_ddpm", f"autoencoder={gan}")
    return [make_run(folder, "vae"), gan, diffusion, make_run(folder, "decoder", f"diffusion={diffusion}")]


def strange_values() -> st.SearchStrategy[Any]:
    """Draw unexpected values for the entries of a checkpoint."""
    import torch

    # fmt: off
    tensors = [
        torch.zeros(0), torch.tensor(float("nan")), torch.zeros(3, dtype=torch.complex64), torch.zeros(2, 2, 2, 2).half(),
        torch.zeros(1).expand(10**6, 10**6), torch.zeros(4, dtype=torch.int64), torch.tensor([True]), torch.eye(3).to_sparse(),
        torch.zeros(5, device="meta"), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    ]
    odd: list[Any] = [
        None, "", "text\n\x1b[31m", "x" * 9000, -1, 0, 10**5000, float("nan"), float("inf"), True, b"", [], {}, (), set(),
    ]
    # fmt: on
    nested: Any = []
    for _ in range(50):
        nested = [nested]
    return st.sampled_from([*tensors, *odd, nested, [None], {"a": {}}, {0: 0}, [["rose"]], 2**31, [0] * 100])


@st.composite
def tampered(draw: st.DrawFn, content: Any, values: st.SearchStrategy[Any]) -> Any:
    """Replace or delete up to four nodes of nested dictionaries and lists; the rest is shared with the original."""
    for _ in range(draw(st.integers(1, 4))):
        content = _tampered(draw, content, values, 0)
    return content


def _tampered(draw: st.DrawFn, node: Any, values: st.SearchStrategy[Any], depth: int) -> Any:
    deeper = isinstance(node, dict | list) and len(node) > 0
    if not deeper or (depth and draw(st.integers(0, 3)) == 0):
        return draw(values)
    copy = type(node)(node) if not isinstance(node, dict) else dict(node)
    keys = sorted(copy, key=str) if isinstance(copy, dict) else range(len(copy))
    key = draw(st.sampled_from(keys))
    match draw(st.integers(0, 7)):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[draw(st.sampled_from(["x", "_target_", "_args_", 0, key]))] = draw(values)
        case _:
            copy[key] = _tampered(draw, copy[key], values, depth + 1)
    return copy


def hostile_pickles(bomb_mib: int) -> list[bytes]:
    """Create malicious pickles, in every format that torch.load supports or has supported."""
    import torch

    files = [pickle.dumps(Shell()), pickle.dumps(Shell(), 0), _saved({"state_dict": Shell(), "loops": {}, "flowergen": {}})]
    files += [_saved({"state_dict": content}, zipped=False) for content in (Shell(), torch.zeros(3))]
    files.append(b"\x80\x02ccollections\nOrderedDict\n)R}(U\x08__call__cos\nsystem\nub.")
    calls: list[Any] = [Shell(), [Shell()], {"state_dict": {}, "loops": {}, "flowergen": {}}]
    files += [_zipped(pickle.dumps(code, 2)) for code in calls]
    bodies = [b"c__builtin__\nexec\n(S'1'\ntR.", b"ctorch\nload\n(S'x'\ntR.", b"(" * 10**5 + b"t" * 10**5 + b"."]
    files += [_zipped(b"\x80\x02" + body) for body in (*bodies, b"]" + b"2aa" * 99 + b".")]
    files += [_zipped(b"\x80\x02N.", bomb_mib), _zipped(b"\x80\x02N.", names=("../../data.pkl", "/tmp/x", "a/../data.pkl"))]
    return files


def _saved(content: Any, zipped: bool = True) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _zipped(code: bytes, bomb_mib: int = 0, names: tuple[str, ...] = ("archive/data.pkl",)) -> bytes:
    buffer = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if bomb_mib else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as file:
        for name in names:
            with file.open(name, "w", force_zip64=True) as member:
                for part in bomb_mib * [bytes(2**20)] or [code]:
                    member.write(part)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return buffer.getvalue()


CANARY = "flowergen_fuzz_canary"  # a module that no config may call
# fmt: off
HOSTILE_TEXTS = [
    "${oc.env:HOME}", "${oc.env:NO_SUCH_VARIABLE}", "${oc.decode:'[1,2]'}", "${hydra:runtime.cwd}", "${model}", "${..x}",
    "${now:%Y}", "os.system", "subprocess.Popen", "builtins.exec", "builtins.eval", "hydra.utils.call", "torch.load",
    "no.such.Class", "os", "pathlib.Path", "torch.nn.Identity", "torch.optim.SGD", "lightning.pytorch.Trainer",
    f"{CANARY}.call", "", "\x1b[2J", "a\nb", "flowergen.modules.vae.VAEModule",
]
HOSTILE_YAML = [
    "!!python/object/apply:os.system ['echo flowergen']",
    "model: !!python/name:os.system\n",
    "a: &a [x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(9 * ['*' + chr(97 + i)])}]\n" for i in range(12)),
    "[" * 3000,
    "{a: " * 900 + "}" * 900,
    "&a [*a]",
    "? [1]\n: 2",
    "1" * 9000,
    "x: 9999-99-99\n",
    "\0",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "model: {_target_: os.system, command: echo}\ndata: {_target_: x.Y}\npaths: {}\ntrainer: {}\nseed: 0\n",
]
# fmt: on


@st.composite
def hostile_runs(draw: st.DrawFn, runs: list[Path]) -> tuple[Path, str, bytes]:
    """Draw a run, the name of one of its files, and a new content for it."""
    import torch
    import yaml

    run = draw(st.sampled_from(runs))
    names = ["checkpoints/last.ckpt", "config.yaml", "latents.safetensors"]
    carried = sorted(str(path.relative_to(run)) for path in run.rglob("*/checkpoints/best.ckpt"))
    name = draw(st.sampled_from([*names, *carried, *(["diffusion/config.yaml"] if (run / "diffusion").is_dir() else [])]))
    good = (run / name).read_bytes()
    damage = draw(st.sampled_from(["bytes", "content", "content", "content", "hostile"]))
    if damage == "bytes":
        return run, name, draw(damaged([good]))
    if name.endswith(".ckpt"):
        if damage == "hostile":
            return run, name, draw(damaged(PICKLES))
        content = torch.load(io.BytesIO(good), weights_only=True)
        content["optimizer_states"] = []
        return run, name, _saved(draw(tampered(content, strange_values())))
    if name.endswith("config.yaml"):
        if damage == "hostile":
            return run, name, draw(st.sampled_from(HOSTILE_YAML)).encode()
        few = [None, True, -1, 0, 0.5, 3, 1e300, float("nan"), [], {}, [None], {"_target_": "os.system", "command": "echo"}]
        call: list[Any] = [{"_target_": text, "_args_": ["echo"]} for text in HOSTILE_TEXTS]
        call.append([{"_target_": "os.system", "_args_": ["echo"]}])
        content = draw(tampered(yaml.safe_load(good), st.sampled_from([*few, *call, *HOSTILE_TEXTS])))
        return run, name, yaml.safe_dump(content).encode()
    return run, name, draw(damaged_safetensors(good, damage == "hostile"))


@st.composite
def damaged_safetensors(draw: st.DrawFn, good: bytes, by_header: bool) -> bytes:
    """Change the tensors but keep the metadata, or change the header."""
    from safetensors import safe_open
    from safetensors.torch import load, save

    if by_header:
        length = int.from_bytes(good[:8], "little")
        swaps = [(b"F32", b"I64"), (b"[", b"[-"), (b"0", b"9"), (b"F16", b"XX"), (b'"', b"'"), (b"{", b"{" * 999)]
        text = good[8 : 8 + length].replace(*draw(st.sampled_from(swaps)))
        return draw(st.sampled_from([len(text), length, 2**63, 2**40, 0])).to_bytes(8, "little") + text + good[8 + length :]
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(good)
        with safe_open(file.name, framework="pt") as opened:
            metadata = opened.metadata()
    tensors = load(good)
    changes: list[Callable[[Any], Any]] = [
        lambda _: None,  # deletes it
        lambda t: t.flatten(),
        lambda t: t[:0],
        lambda t: t.double() if t.is_floating_point() else t.float(),
        lambda t: t * float("nan") if t.is_floating_point() else t - 9,
        lambda t: t[None],
        lambda t: t[..., :-1].contiguous() if t.dim() else t,
    ]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensors[name] = changes[draw(st.integers(0, 6))](tensors[name])
        if tensors[name] is None:
            del tensors[name]
        if not tensors:
            break
    return save(tensors, metadata)


PICKLES: list[bytes] = []  # filled once, because a zip bomb takes a while to create


def check_run(example: tuple[Path, str, bytes], scratch: Path) -> None:
    """Load the changed run and sample from it, or raise ``UserError``."""
    from flowergen.runs.loading import epochs_done, load_run, read_checkpoint
    from flowergen.runs.sampling import stored_latents

    source, name, content = example
    run = scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("images", "tensorboard", "*.png"))
    (run / name).write_bytes(content)
    (run / "checkpoints" / "best.ckpt").unlink(missing_ok=True)
    if name == "checkpoints/last.ckpt":
        epochs_done(read_checkpoint(run / name))
    model = load_run(run)
    store = stored_latents(model)
    if store and store.prior:
        store.prior.sample([0, 1], 0)


# ---- Command lines ---------------------------------------------------------------------------------------------------
# fmt: off
KEYS = [
    "seed", "name", "model", "data", "trainer", "callbacks", "logger", "experiment", "debug", "hparams_search", "resume",
    "autoencoder", "model.beta", "model.channels", "model.optimizer.lr", "data.root", "data.image_size", "data.batch_size",
    "trainer.devices", "trainer.max_epochs", "paths.cache_dir", "paths.output_dir", "hydra.run.dir", "hydra.sweep.dir",
    "sweep.skip_finished", "hydra/launcher", "hydra.launcher", "hydra.job_logging", "hydra.verbose",
    "hydra.callbacks.x._target_", "hydra.searchpath", "hydra.sweeper.params", "hydra.output_subdir", "hydra", "model/network",
    "model.network", "model@x", "callbacks.x", "model.x", "model._target_", "run", "num", "classes", "out", "source", "train",
    "test", "guidance_interval", "image", "sampler", "extractor", "sweep", "", "a.b.c",
]
VALUES = [
    "1", "-1", "0", "1e999", "nan", "9" * 5000, "0x10", "true", "null", "???", "''", '"', "[1,2]", "{a:1}", "[" * 400,
    "[" * 400 + "]" * 400, "{a:" * 400 + "}" * 400, "${seed}", "${" + "${" * 99, "${oc.env:HOME}", "${oc.decode:1}",
    "${hydra:runtime.cwd}", "${${seed}}", "${", "${x:" * 200, "\\", "1,2", "a,b,c", "range(1,5)", "range(0,1e18)",
    "choice(1,2)", "choice()", "glob(*)", "glob([*],exclude=x)", "interval(0,1)", "sort(3,1)", "shuffle(1,2)",
    "tag(a,choice(1))", "int(x)", "float([1,a])", "str(1)", "bool(maybe)", "json_str({a:1})", "extend_list(1)", "int(" * 300,
    "../../x", "/", "vae", "vae_gan", "latent_ddpm", "procedural", "beta", "beta_optuna", "quickstart", "none", "../vae",
    "vae/../vae", "\0", "\ud800", "\x1b[2J", "a\nb", "ü/ö (1).jpg", "~", "~root", "~no_such_user/x", "x" * 5000, "x/" * 3000,
    "a=b", "file:///x", ".", "[file:///x]", "pkg://os", "os.system", "range(0,3)," * 50 + "1", "{_target_:os.system}", "[]",
    "{}", "1," * 3000 + "1", "1," * 30_000, "range(1,1000000000000)", "'" + "a" * 9000 + "'",
]
FLAGS = [
    "-m", "--multirun", "--config-dir", "--config-dir=x", "--config-name", "--help", "--hydra-help", "--cfg", "job", "--info",
    "-c", "--", "-p", "--run", "--resolve", "-x", "--shell-completion", "-sc", "--version", "",
]
# fmt: on


def command_lines() -> st.SearchStrategy[tuple[str, list[str]]]:
    """Draw a command and its arguments: typing errors, elements of Hydra's grammar, and arbitrary text."""
    grammar = st.text(st.sampled_from("=+~,[]{}()'\":$\\/.@%&| \t\n-01aeé"), max_size=30)
    value = st.one_of(st.sampled_from(VALUES), grammar, st.integers().map(str), st.floats().map(str), st.text(max_size=40))
    pair = st.tuples(
        st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from(["=", "=", "=", ""]), value
    )
    argument = st.one_of(pair.map("".join), pair.map("".join), grammar, st.text(max_size=30), st.sampled_from(FLAGS))
    return st.tuples(
        st.sampled_from(["train", "train", "sample", "evaluate", "split"]), st.lists(argument, min_size=1, max_size=5)
    )


def check_command_line(example: tuple[str, list[str]], scratch: Path) -> None:
    """Check a command line, which must be accepted or raise ``UserError``."""
    command, arguments = example
    folder = scratch / "here"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    if command == "train":
        prepare_train(arguments)
    else:
        read_command_line(command, {"sample": Sample, "evaluate": Evaluate, "split": Split}[command], arguments)


# ---- Targets ---------------------------------------------------------------------------------------------------------
Target = tuple[st.SearchStrategy[Any], Callable[[Any], str | None]]


def target_of(name: str, scratch: Path) -> Target:
    """Return the strategy for examples, and the function that examines one."""
    if name == "picture":
        return damaged(picture_files()), lambda data: examine(lambda: check_picture(data), UnreadablePicture, scratch)
    if name == "checkpoint":
        PICKLES[:] = hostile_pickles(bomb_mib=3 * 2**10)
        runs = make_runs(Path(tempfile.mkdtemp(dir=scratch)))
        return hostile_runs(runs), lambda run: examine(lambda: check_run(run, scratch), UserError, scratch)
    lines = command_lines()
    return lines, lambda line: examine(lambda: check_command_line(line, scratch), UserError, scratch, strict=False)


def run_settings() -> dict[str, str]:
    """Return the defaults, overridden by the key=value arguments."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    defaults = {"target": "", "minutes": "10", "seed": "0", "out": "fuzz_findings"}
    if given.get("target") not in ("picture", "checkpoint", "overrides") or given.keys() - defaults.keys():
        sys.exit(__doc__)
    return defaults | given


def main() -> None:
    """Fuzz until the time limit."""
    config = run_settings()
    sys.dont_write_bytecode = True
    scratch, out = Path(tempfile.mkdtemp()).resolve(), Path(config["out"]).absolute()
    strategy, fault = target_of(config["target"], scratch)
    end = time.monotonic() + 60 * float(config["minutes"])
    limit = _memory("VmSize") + 4 * MAX_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # protects the machine from a bad example
    findings: dict[str, tuple[Any, str]] = {}
    count = 0

    def one(example: Any) -> None:
        nonlocal count
        if time.monotonic() > end:
            return
        count += 1
        wrong = fault(example)
        kind = wrong.partition(":")[0] if wrong else ""
        if wrong and kind not in done:
            if kind not in findings:
                print(f"{count:,} examples: {wrong[:600]!r}", flush=True)
            findings[kind] = (example, wrong)
            raise Finding(kind)

    done: set[str] = set()
    options = settings(
        max_examples=200,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    rounds = 0
    while time.monotonic() < end:
        with contextlib.suppress(Finding, Flaky, BaseExceptionGroup):  # Flaky: time or memory differ between runs
            seeded(100_000 * int(config["seed"]) + rounds)(options(given(strategy)(one)))()
        done.update(findings)
        for number, (kind, (example, wrong)) in enumerate(findings.items()):
            out.mkdir(parents=True, exist_ok=True)
            text = repr(example) if len(repr(example)) < 4000 else f"{repr(example)[:4000]}..."
            (out / f"{config['target']}_{number}.txt").write_text(f"{kind}\n{wrong!r}\n{text}\n", errors="backslashreplace")
            (out / f"{config['target']}_{number}.pickle").write_bytes(pickle.dumps(example))
        rounds += 1
    summary = f"{count:,} examples in {config['minutes']} minutes, seed {config['seed']}"
    print(f"{config['target']}: {summary}: {len(findings)} findings")
    os.chdir(out.parent)
    shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
