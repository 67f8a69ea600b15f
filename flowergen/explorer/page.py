"""The page, made with Gradio: a tab for each thing that the model can do. Importing this file does not import Gradio.

All events that compute with the model share one queue, which computes one of them at a time; the tab Run has its own.
Pictures under the pointer of the tab Map wait in no queue: one at a time is decoded, and a request meanwhile gets none.
"""

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib import resources
from inspect import isgeneratorfunction
from threading import Lock
from typing import Any

import torch

from flowergen.data.reading import IMAGE_EXTENSIONS
from flowergen.errors import UserError, one_line
from flowergen.explorer import editing, generating, latent_map, mixing, training_progress
from flowergen.explorer.model import TRAVERSED_SIGMAS, ExplorerModel
from flowergen.explorer.picture_html import data_url, figures
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.runs.machine_limits import out_of_memory_as_user_error

MODEL = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}  # of events that compute
FILES = {"concurrency_id": "files", "concurrency_limit": 2, "api_visibility": "private", "show_progress": "hidden"}
FOLLOW_SECONDS = 5
UPLOAD_DELETION = (600, 3600)  # every 600 s, uploads that are older than an hour
MAX_HOVERED = 4096  # pictures of points that are kept
PAINTED = """
<div class="canvas"><img alt="The picture to paint on"><canvas aria-label="Paint here"></canvas></div>
<div class="tools"><label>Brush <input type="range" min="2" max="40" value="12"></label>
<button type="button">Clear</button></div>
"""
MAP = """
<div class="canvas"><canvas width="1000" height="800" aria-label="Map of the latents"></canvas>
<div class="hover"><img alt=""><span></span></div></div><details><summary>Classes</summary><div class="legend"></div></details>
"""
NEAREST, BICUBIC = "single pixels", "smooth (bicubic)"
TOGGLE_JS = f"(how) => {{ document.body.classList.toggle('bicubic', how === '{BICUBIC}'); return how; }}"


def build(explorer: ExplorerModel) -> Any:
    """Return the page, ``gradio.Blocks``."""
    import gradio as gr

    run = explorer.model.run.path
    with gr.Blocks(title=f"{run.name} - flowergen", analytics_enabled=False, delete_cache=UPLOAD_DELETION) as page:
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                heading = f"# {html.escape(run.parent.name)}/{html.escape(run.name)}"
                gr.Markdown(f"{heading}\n{html.escape(explorer.module.summary())}")
            with gr.Column(scale=1, min_width=280):
                enlarging = gr.Radio([NEAREST, BICUBIC], value=NEAREST, label="Pictures are enlarged as", elem_id="enlarging")
        enlarging.change(None, enlarging, enlarging, js=TOGGLE_JS)
        with gr.Tabs():
            with gr.Tab("Generate", id="generate", elem_id="generate-panel"):
                _generate(gr, explorer)
            with gr.Tab("Edit", id="edit"):
                _edit(gr, explorer)
            if explorer.has_latents:
                with gr.Tab("Mix", id="mix"):
                    _mix(gr, explorer)
            if explorer.has_map:
                with gr.Tab("Map", id="map"):
                    _map(gr, explorer)
            with gr.Tab("Run", id="run"):
                _run(gr, explorer)
    return page


def asset(name: str) -> str:
    """Return the text of a file of the page."""
    return resources.files("flowergen.explorer").joinpath(name).read_text(encoding="utf-8")


def with_user_errors_shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show a ``UserError`` of an event to the user as one sentence."""
    if not isgeneratorfunction(function):
        return _one_sentence()(function)

    @wraps(function)
    def steps(*args: Any) -> Iterator[Any]:
        with _one_sentence():
            yield from function(*args)

    return steps


@contextmanager
def _one_sentence() -> Iterator[None]:
    from gradio import Error

    try:
        with out_of_memory_as_user_error("; use fewer pictures"):
            yield
    except UserError as error:
        sentence = html.escape(one_line(error), quote=False)
        raise Error(sentence, title="That is not possible", print_exception=False) from error


# ---- Generate ----------------------------------------------------------------------------------------------------------
def _generate(gr: Any, explorer: ExplorerModel) -> None:
    module = explorer.module
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            classes = _classes(gr, explorer, "Classes, in turn; without any, all of them" if module.denoises
                               else "Classes, in turn; without any, of no particular one")  # fmt: skip
            num, seed = _num(gr, 4, elem_id="num"), _seed(gr, elem_id="seed")
            asked = _denoising(gr, module.denoising_model) if module.denoising_model else {}
            with gr.Row():
                button = gr.Button("Generate", variant="primary", elem_id="generate-button")
                stop = gr.Button("Stop", visible=module.denoises)
        with gr.Column(scale=2, min_width=280):
            pictures = gr.HTML(elem_id="generated")
    keys = list(asked)

    def generate(num: Any, seed: Any, classes: Any, *values: Any) -> Iterator[str]:
        options = dict(zip(keys, values, strict=True))
        watched = options.pop("watched", generating.ESTIMATE)
        if options:
            options["guidance_interval"] = (options.pop("low"), options.pop("high"))
        for frame in generating.generate(explorer, num, seed, classes, options, watched):
            names = generating.captions(explorer, generating.labels_of(explorer, classes, len(frame.pictures)).tolist())
            last = frame.step == frame.steps
            note = "" if last else f"step {frame.step} of {frame.steps}"
            yield figures(frame.pictures, names, f"seed{int(seed)}" if last else None, note)

    event = button.click(
        with_user_errors_shown(generate), [num, seed, classes, *asked.values()], pictures, show_progress="minimal", **MODEL
    )  # fmt: skip
    stop.click(None, None, None, cancels=[event])


def _denoising(gr: Any, module: LatentDDPMModule) -> dict[str, Any]:
    """Return the inputs of the denoising, by key of the options."""
    own = module.sampling
    steps, scale = _steps_and_scale(gr, module, "Guidance scale, 1 for none", elem_id="steps")
    with gr.Accordion("More", open=False):
        sampler = gr.Dropdown(generating.samplers_of(module), value=own.sampler, label="Sampler")
        low, high = (gr.Slider(0, 1, value=value, step=0.01, label=f"Guidance {words} t / T (0 is clean, 1 is noise)")
                     for value, words in zip(own.guidance_interval, ("from", "to"), strict=True))  # fmt: skip
        watched = gr.Radio(list(generating.WATCHED), value=generating.ESTIMATE, label="While it denoises, show")
    return {"sampler": sampler, "steps": steps, "guidance_scale": scale, "low": low, "high": high, "watched": watched}


# ---- Edit --------------------------------------------------------------------------------------------------------------
def _edit(gr: Any, explorer: ExplorerModel) -> None:
    diffusion = explorer.module.denoising_model
    source = gr.State(None)
    painted: list[Any] = []
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload_button = _upload(gr, "Upload a picture", "upload")
            fitted = gr.HTML(elem_id="fitted")
        with gr.Column(scale=2, min_width=280), gr.Tabs():
            if explorer.has_latents:
                with gr.Tab("Vary"):
                    with gr.Row():
                        num, seed = _num(gr, 4), _seed(gr)
                    automatic = gr.Checkbox(True, label="A scale with a visible effect")
                    power = gr.Slider(*editing.SCALES, value=0, step=0.1, label="Else, the scale as a power of ten")
                    button, out = _button_and_output(gr, "Vary", "vary")

                    def vary(x: Any, num: Any, seed: Any, automatic: Any, power: Any) -> str:
                        return _numbered(editing.vary(explorer, x, num, None if automatic else power, seed), "variation")

                    button.click(with_user_errors_shown(vary), [source, num, seed, automatic, power], out, **MODEL)
            if diffusion:
                with gr.Tab("Image to image"):
                    strength = gr.Slider(0, 1, value=0.6, step=0.05, label="Strength: 0 reconstructs, 1 makes a new picture")
                    _edit_by_diffusion(gr, explorer, diffusion, editing.img2img, source, strength, "Edit")
                if diffusion.latent_shape[1:] != (1, 1):
                    with gr.Tab("Inpaint"):
                        mask = gr.HTML("", html_template=PAINTED, js_on_load=asset("mask.js"), elem_id="mask", picture="")
                        _edit_by_diffusion(gr, explorer, diffusion, editing.inpaint, source, mask, "Replace")
                        painted = [mask]
            if explorer.has_map:
                with gr.Tab("Traverse"):
                    gr.Markdown(
                        "Each slider moves along a direction in which training pictures differ most, in standard deviations."
                    )
                    sliders = [
                        gr.Slider(-TRAVERSED_SIGMAS, TRAVERSED_SIGMAS, value=0, step=0.1, elem_id=f"direction-{number}",
                                  label=f"Direction {number}, {share:.1%} of the variance")
                        for number, share in enumerate(explorer.directions.shares.tolist(), start=1)
                    ]  # fmt: skip
                    out = gr.HTML(elem_id="traverse-out")

                    def traverse(x: Any, *sigmas: Any) -> str:
                        return figures(editing.traverse(explorer, x, sigmas), ["traversed"], "traversed")

                    gr.on([slider.change for slider in sliders], with_user_errors_shown(traverse), [source, *sliders], out,
                          show_progress="hidden", trigger_mode="always_last", **MODEL)  # fmt: skip

    def upload(path: Any) -> list[Any]:
        x = editing.uploaded(explorer, path)
        both, words = [x], ["as the model sees it"]
        if explorer.has_latents:
            both.append(editing.reconstruct(explorer, x))
            words.append("its reconstruction")
        shown = figures(torch.cat(both), words, "picture")
        return [x, shown, *(gr.HTML("", picture=data_url(x[0])) for _ in painted)]

    upload_button.upload(with_user_errors_shown(upload), upload_button, [source, fitted, *painted], **MODEL)


def _edit_by_diffusion(
    gr: Any,
    explorer: ExplorerModel,
    module: LatentDDPMModule,
    edit: Callable[..., Any],
    source: Any,
    strength_or_mask: Any,
    words: str,
) -> None:
    """Make the inputs, the button ``words`` and the output of an edit of ``source``."""
    classes = _classes(gr, explorer, "Classes to paint; without any, no particular one")
    with gr.Row():
        num, seed = _num(gr, 2), _seed(gr)
    with gr.Row():
        steps, scale = _steps_and_scale(gr, module, "Guidance scale")
    button, out = _button_and_output(gr, words, edit.__name__)

    def edited(x: Any, strength_or_mask: Any, classes: Any, num: Any, seed: Any, steps: Any, scale: Any) -> str:
        made = edit(explorer, x, strength_or_mask, classes, num, seed, {"steps": steps, "guidance_scale": scale})
        chosen = classes or [-1]  # the pictures of each class in turn
        names = [explorer.class_name(label) or "edited" for label in chosen for _ in range(len(made) // len(chosen))]
        return figures(made, names, "edited")

    button.click(with_user_errors_shown(edited), [source, strength_or_mask, classes, num, seed, steps, scale], out, **MODEL)


# ---- Mix ---------------------------------------------------------------------------------------------------------------
def _mix(gr: Any, explorer: ExplorerModel) -> None:
    ingredients = gr.State([])
    names: list[Any] = [("none", None), *((name, label) for label, name in enumerate(explorer.class_names))]
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = _upload(gr, "Add pictures", "add-files", several=True)
            with gr.Row():
                label = gr.Dropdown(names, value=None, label="Class", visible=bool(explorer.class_names))
                seed = _seed(gr)
            with gr.Row():
                sample = gr.Button("Add a sample", elem_id="add-sample")
                clear = gr.Button("Remove all")
            mixed = gr.HTML(elem_id="ingredients")
        with gr.Column(scale=2, min_width=280):
            place = gr.Slider(0, 1, value=0.5, step=0.01, label="From the first to the last", elem_id="place")
            with gr.Accordion("Class arithmetic", open=False, visible=bool(explorer.class_means)):
                with gr.Row():
                    plus, minus = (gr.Dropdown(names, value=None, label=words) for words in ("Towards", "Away from"))
                strength = gr.Slider(0, mixing.MAX_STRENGTH, value=1, step=0.05, label="Strength")
            mixture = gr.HTML(elem_id="mixture")
            interpolate = gr.Button("The whole way", elem_id="walk")
            interpolation = gr.HTML(elem_id="way")
    settings = [place, plus, minus, strength]

    def shown(current: list[mixing.Ingredient], *settings: Any) -> list[Any]:
        listed = figures(
            torch.stack([ingredient.picture for ingredient in current]), [ingredient.caption for ingredient in current]
        )
        return [current, listed, mix(current, *settings)]

    def mix(current: list[mixing.Ingredient], *settings: Any) -> str:
        return figures(mixing.mix(explorer, current, *settings), ["mixed"], "mixed")

    def add_files(current: Any, paths: Any, *settings: Any) -> list[Any]:
        new = [mixing.from_picture(explorer, editing.uploaded(explorer, path), "uploaded")
               for path in (paths or [])[: mixing.MAX_INGREDIENTS + 1]]  # fmt: skip
        return shown(mixing.add(current, new), *settings)

    def add_sample(current: Any, label: Any, seed: Any, *settings: Any) -> list[Any]:
        mixing.add(current, [None])  # type: ignore[list-item]  # before it is sampled
        new = mixing.from_sample(explorer, label, seed)
        return [seed + 1, *shown(mixing.add(current, [new]), *settings)]

    def interpolated(current: Any) -> str:
        return _numbered(mixing.interpolate(explorer, current), "step")

    outputs = [ingredients, mixed, mixture]
    files.upload(with_user_errors_shown(add_files), [ingredients, files, *settings], outputs, **MODEL)
    sample.click(with_user_errors_shown(add_sample), [ingredients, label, seed, *settings], [seed, *outputs], **MODEL)
    clear.click(lambda: [[], "", "", ""], None, [*outputs, interpolation], **FILES)
    interpolate.click(with_user_errors_shown(interpolated), ingredients, interpolation, **MODEL)
    gr.on([control.change for control in settings], with_user_errors_shown(mix), [ingredients, *settings], mixture,
          show_progress="hidden", trigger_mode="always_last", **MODEL)  # fmt: skip


# ---- Map ---------------------------------------------------------------------------------------------------------------
def _map(gr: Any, explorer: ExplorerModel) -> None:
    lock = Lock()

    @lru_cache(MAX_HOVERED)  # which keeps no exceptions
    def decoded(number: int) -> str:
        if not lock.acquire(blocking=False):  # waiting would take a thread from the other requests
            raise UserError("another picture is being decoded")
        try:
            return data_url(latent_map.picture_of_point(explorer, number)[0])
        finally:
            lock.release()

    def picture(number: Any) -> str:
        """Return the address of a point's picture; nothing if there is no such point, or while another one is decoded."""
        try:
            return decoded(number if isinstance(number, int) else -1)
        except UserError:
            return ""

    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            gr.Markdown(
                f"{len(explorer.points[0]):,} training pictures on the plane in which their latents vary most. "
                "A click decodes a place, a drag walks from one place to another."
            )
            plane = gr.HTML(None, html_template=MAP, js_on_load=asset("map.js"), elem_id="plane",
                            map=latent_map.map_data(explorer), server_functions=[picture])  # fmt: skip
        with gr.Column(scale=2, min_width=280):
            out = gr.HTML(elem_id="place-out")

    def decode_place(value: Any) -> str:
        value = value if isinstance(value, dict) else {}
        if "start" in value:
            return _numbered(latent_map.pictures_along(explorer, value["start"], value.get("end")), "step")
        x, nearest = latent_map.pictures_at(explorer, value.get("place"))
        name = explorer.class_name(int(explorer.points[1][nearest]))
        return figures(x, ["this place", f"the nearest picture{f': {name}' if name else ''}"], "place")

    plane.submit(with_user_errors_shown(decode_place), plane, out, show_progress="minimal", trigger_mode="always_last", **MODEL)


# ---- Run ---------------------------------------------------------------------------------------------------------------
def _run(gr: Any, explorer: ExplorerModel) -> None:
    run = explorer.model.run
    num = max(1, len(training_progress.epochs(run)))
    curves = gr.HTML(lambda: training_progress.curves(run), elem_id="curves")
    epoch = gr.Slider(
        1, max(2, num), value=num, step=1, label="Pictures of training, from the first to the last", elem_id="epoch"
    )
    pictures = gr.HTML(lambda: training_progress.pictures_of_epoch(run, num), elem_id="epoch-pictures")
    card = gr.Markdown(lambda: training_progress.card(run))
    known = gr.State((training_progress.versions(run), num))
    show = with_user_errors_shown(lambda number: training_progress.pictures_of_epoch(run, number))
    epoch.change(show, epoch, pictures, trigger_mode="always_last", **FILES)

    def follow(number: Any, known: Any) -> list[Any]:
        """Show what training has written since; the slider moves on if it stands at its end."""
        now = training_progress.versions(run)
        if now == known[0]:
            return [gr.skip()] * 5
        num = max(1, len(training_progress.epochs(run)))
        number = num if number >= known[1] else number
        shown = training_progress.pictures_of_epoch(run, number)
        slider = gr.Slider(maximum=max(2, num), value=number)
        return [training_progress.curves(run), slider, shown, training_progress.card(run), (now, num)]

    gr.Timer(FOLLOW_SECONDS).tick(
        with_user_errors_shown(follow), [epoch, known], [curves, epoch, pictures, card, known], **FILES
    )


# ---- Parts of several tabs ---------------------------------------------------------------------------------------------
def _classes(gr: Any, explorer: ExplorerModel, label: str) -> Any:
    choices = [(name, number) for number, name in enumerate(explorer.class_names)]
    return gr.Dropdown(choices, value=[], multiselect=True, label=label, visible=bool(choices), elem_classes="classes")


def _steps_and_scale(gr: Any, module: LatentDDPMModule, words: str, elem_id: str | None = None) -> tuple[Any, Any]:
    most = generating.MAX_STEPS
    if module.objective != "flow":  # which may take more steps than it has been trained on
        most = min(most, module.schedule.num_timesteps)
    steps = gr.Slider(1, most, value=min(module.sampling.steps, most), step=1, label="Steps", elem_id=elem_id)
    return steps, gr.Slider(0, generating.MAX_GUIDANCE, value=module.sampling.guidance_scale, step=0.1, label=words)


def _num(gr: Any, value: int, elem_id: str | None = None) -> Any:
    return gr.Slider(1, generating.MAX_PICTURES, value=value, step=1, label="Pictures", elem_id=elem_id)


def _seed(gr: Any, elem_id: str | None = None) -> Any:
    return gr.Number(0, precision=0, minimum=0, maximum=generating.SEEDS, label="Seed", elem_id=elem_id)


def _upload(gr: Any, label: str, name: str, several: bool = False) -> Any:
    return gr.UploadButton(
        label, file_count="multiple" if several else "single", file_types=list(IMAGE_EXTENSIONS), type="filepath", elem_id=name
    )


def _button_and_output(gr: Any, words: str, name: str) -> tuple[Any, Any]:
    return gr.Button(words, variant="primary", elem_id=f"{name}-button"), gr.HTML(elem_id=f"{name}-out")


def _numbered(x: torch.Tensor, name: str) -> str:
    return figures(x, [f"{name} {number}" for number in range(1, len(x) + 1)], name)
