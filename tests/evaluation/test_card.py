import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowergen.errors import UserError
from flowergen.evaluation.card import (
    COLUMNS,
    INCEPTION_NAMES,
    METRICS,
    PER_MILLE,
    comparison,
    hash_of,
    label_of,
    markdown,
    newest_card,
    read_card,
    shown,
    summarised,
    table,
)

PROTOCOL = {"extractor": "inception", "num_reference": 819, "reference": "test pictures", "num": 819, "repeats": 3}


def card(what: str = "one", **changes: Any) -> dict[str, Any]:
    """A small one; ``protocol_`` before a name changes the protocol."""
    protocol = PROTOCOL | {key.removeprefix("protocol_"): value for key, value in changes.items() if "protocol_" in key}
    made = {
        "subject": {"what": what, "sampled by": "4 steps"},
        "counts": {"samples": 819, "train": 819},
        "probe": {"weights": "hash", "accuracy": 0.875},
        "results": summarised({"fid": {"samples": [10.0, 12.0], "train": [3.0]}, "psnr": {"reference": [20.0]}}),
        "missing": [],
        "notes": [],
        "protocol_hash": hash_of(protocol),
        "protocol": protocol,
        "made": {"date": "today"},
    }
    return made | {key: value for key, value in changes.items() if "protocol_" not in key}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows_of(lines: list[str]) -> dict[str, list[str]]:
    """By their first cell."""
    return {cells(line)[0]: cells(line)[1:] for line in lines if line.startswith("| ")}


def written(folder: Path, content: dict[str, Any] | str) -> Path:
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


# -- figures


def test_results_become_mean_deviation_and_values() -> None:
    found = summarised({"fid": {"samples": [1.0, 2.0, 6.0], "train": [4.0]}})["fid"]
    assert found["samples"]["mean"] == pytest.approx(3)
    assert found["samples"]["std"] == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert found["samples"]["values"] == [1, 2, 6]
    assert found["train"] == {"mean": 4, "std": None, "values": [4]}


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("fid", [10.0, 12.0], "11.00 ± 1.41"),
        ("fid", [10.004], "10.00"),
        ("kid", [0.0123], "12.30"),
        ("rkid", [-0.001, -0.003], "-2.00 ± 1.41"),
        ("precision", [0.5], "0.500"),
        ("class_accuracy", [0.9123], "91.2%"),
        ("copies_pixels_third", [0.0123, 0.0123], "1.23% ± 0.00%"),
        ("elbo", [-12345.6], "-12,346"),
        ("fid", [math.nan, 1.0], "not a number"),
        ("elbo", [-math.inf], "not a number"),
    ],
)
def test_values_are_shown_in_their_own_format(metric: str, values: list[float], expected: str) -> None:
    """KID in thousandths, its deviation too."""
    assert shown(metric, summarised({metric: {"samples": values}})[metric]["samples"]) == expected


def test_nothing_is_shown_as_nothing() -> None:
    assert shown("fid", None) == ""


@pytest.mark.parametrize("metric", METRICS)
def test_only_inceptions_features_make_an_fid(metric: str) -> None:
    label = METRICS[metric].label
    assert label_of(metric, "inception") == label
    other = label_of(metric, "/some/where/net.pt")
    if metric not in INCEPTION_NAMES:
        assert other == label
        return
    assert not re.search(r"FID|KID|^Inception Score", other)
    assert other.endswith("(net.pt)")
    assert label_of(metric, "torchvision:resnet50").endswith("(torchvision:resnet50)")
    assert ("x 1000" in other) == ("x 1000" in label) == (metric in PER_MILLE)


def test_a_protocol_is_known_by_its_content() -> None:
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1})
    assert re.fullmatch("[0-9a-f]{12}", hash_of({}))
    assert hash_of({"a": 1}) != hash_of({"a": 2})


# -- tables


def test_columns_of_a_table_are_aligned() -> None:
    lines = table([["", "a head", "b"], ["name", "1", "much longer"], ["ß ± é", "", "2"]])
    assert len({len(line) for line in lines}) == 1
    for line in lines:
        assert [place for place, character in enumerate(line) if character == "|"] == [0, 8, 17, 31]
    assert set(lines[1]) == {"|", "-"}
    assert cells(lines[2]) == ["name", "1", "much longer"]


def test_a_card_shows_every_result_beside_its_floor_and_how_many_they_were_of() -> None:
    text = markdown(card(missing=["LPIPS: no weights"], notes=["mind the gap"]))
    lines = text.splitlines()
    assert lines[0] == "# one"
    assert "sampled by: 4 steps  " in lines
    assert "## Against 819 test pictures" in lines
    rows = rows_of(lines)
    assert rows[""] == ["reconstructed reference"], "the last table's"
    head = next(line for line in lines if "samples, n = 819" in line)
    assert cells(head) == ["", "samples, n = 819", "floor: training pictures, n = 819"]
    assert rows["FID (lower is better)"] == ["11.00 ± 1.41", "3.00"]
    assert rows["PSNR, dB (higher is better)"] == ["20.00"]
    assert text.index("## Not measured\n\n- LPIPS: no weights") < text.index("## Notes\n\n- mind the gap")
    assert f"## Protocol {hash_of(PROTOCOL)}" in lines
    for key, value in PROTOCOL.items():
        assert f"- {key}: {value}" in lines
    assert text.endswith("## Made\n\n- date: today\n")
    assert "The linear probe, not fitted to the validation pictures, classifies 87.5% of them correctly" in text
    without = markdown(card(probe=None))
    assert "The linear probe" not in without
    assert "The linear probe" not in markdown(card(probe={"weights": "hash", "accuracy": None})), "nothing was held out"
    assert "Not measured" not in without
    assert "Notes" not in without
    assert "Denoising" not in without, "tables without a row are left out"


@pytest.mark.parametrize("metric", METRICS)
def test_every_figure_has_its_place_in_a_card(metric: str) -> None:
    results = summarised({metric: {of: [0.25] for of in COLUMNS}})
    lines = markdown(card(results=results, protocol_extractor="efficientnet")).splitlines()
    arrow = {"lower": " (lower is better)", "higher": " (higher is better)", "": ""}[METRICS[metric].better]
    value = shown(metric, results[metric]["samples"])
    assert rows_of(lines)[label_of(metric, "efficientnet") + arrow] == [value] * len(COLUMNS)


def test_a_card_says_how_to_read_its_first_table() -> None:
    """What the ± is of, why a floor can be beaten, and whether n is too small for the distance."""
    text = markdown(card())
    assert "± is the standard deviation over 3 sets of pictures, of floors and of samples. A floor is also a mean over" in text
    assert "so a good model can fall below it by chance. The Fréchet distance has a bias that falls with n" in text
    assert "n = 819 is too small for it (10,000 are recommended): prefer the kernel distance, which has none.\n" in text
    assert "too small" not in markdown(card(counts={"samples": 10_000, "train": 819}))
    assert "± is" not in markdown(card(protocol_repeats=1))


def test_the_losses_columns_say_of_what_they_are_whatever_a_floor_is_of() -> None:
    """As many training pictures as held-out ones, and no more: not the number of the floor's."""
    results = summarised({"denoising_loss": {"train": [0.5], "held_out": [0.75]}, "fid": {"samples": [1.0], "train": [2.0]}})
    lines = markdown(card(results=results)).splitlines()
    heads = [cells(line) for line in lines if line.startswith("|  ")]
    assert heads == [
        ["", "samples, n = 819", "floor: training pictures, n = 819"],
        ["", "as many training pictures", "held-out pictures"],
    ]


def test_as_many_samples_as_the_floor_has_pictures_are_a_column_of_their_own() -> None:
    results = summarised({"fid": {"samples": [1.0], "train": [2.0], "samples_as_floor": [3.0]}})
    made = card(results=results, counts={"samples": 819, "train": 100, "samples_as_floor": 100})
    rows = rows_of(markdown(made).splitlines())
    assert rows[""] == [
        "samples, n = 819",
        "floor: training pictures, n = 100",
        "as many samples as the floor has pictures, n = 100",
    ]
    assert rows["FID (lower is better)"] == ["1.00", "2.00", "3.00"]


# -- comparison


def test_cards_of_one_protocol_are_compared_in_a_column_each_floors_last() -> None:
    two = card("two", results=summarised({"fid": {"samples": [9.0, math.nan]}, "kid": {"samples": [0.001]}}))
    two["subject"]["sampled by"] = None
    lines = comparison([card(), two, card("three")])
    assert lines[0] == f"protocol {hash_of(PROTOCOL)}"
    assert len({len(line) for line in lines[2:]}) == 1
    rows = rows_of(lines)
    assert rows[""] == ["one", "two", "three"]
    assert rows["sampled by"] == ["4 steps", "", "4 steps"]
    assert rows["FID"] == ["11.00 ± 1.41", "not a number", "11.00 ± 1.41"]
    assert rows["FID, floor: training pictures"] == ["3.00", "", "3.00"]
    assert rows["KID x 1000"] == ["", "1.00", ""]
    assert rows["PSNR, dB, reconstructed reference"] == ["20.00", "", "20.00"]
    names = list(rows)
    assert names.index("FID") < names.index("FID, floor: training pictures") < names.index("KID x 1000")
    assert len(names) == 6, "no rows without a value"


def test_a_comparison_in_other_features_does_not_speak_of_fid() -> None:
    rows = rows_of(comparison([card(protocol_extractor="efficientnet")] * 2))
    assert "Fréchet distance (efficientnet)" in rows
    assert "FID" not in rows


def test_class_consistency_by_other_probes_is_not_compared_and_it_is_said() -> None:
    """Nor where one card has none; the rest is."""
    results = summarised({"fid": {"samples": [1.0]}, "class_accuracy": {"samples": [0.5], "held_out": [0.75]}})
    one = card(results=results)
    rows = rows_of(comparison([one, card("two", results=results)]))
    assert rows["of their class"] == ["50.0%", "50.0%"]
    for probe in ({"weights": "other", "accuracy": 0.875}, {"weights": "hash", "accuracy": 0.9}, None):
        other = card("two", results=results, probe=probe)
        for cards in ([one, other], [other, one], [one, one, other]):
            lines = comparison(cards)
            assert "of their class" not in "\n".join(lines)
            assert lines[-1] == "class consistency is left out: the cards used different linear probes"
            assert rows_of(lines)["FID"] == ["1.00"] * len(cards)


def test_losses_of_other_denoising_tasks_are_not_compared_and_it_is_said() -> None:
    """A card without the loss is no other task."""
    losses = {f"denoising_loss{level}": {"train": [0.5], "held_out": [0.75]} for level in ("", "_noise_1", "_noise_4")}
    both = summarised({"fid": {"samples": [1.0]}} | losses)

    def of(task: str | None) -> dict[str, Any]:
        made = card("of " + str(task), results=both if task else summarised({"fid": {"samples": [1.0]}}))
        made["subject"]["denoising"] = task
        return made

    for cards in ([of("v"), of("v")], [of("v"), of(None)], [of(None), of("v"), of("v")]):
        lines = comparison(cards)
        assert "denoising loss, held-out pictures" in rows_of(lines)
        assert "left out" not in "\n".join(lines)
    for cards in ([of("v"), of("eps")], [of("eps"), of(None), of("v")]):
        lines = comparison(cards)
        assert not [line for line in lines if line.startswith("| denoising")]
        assert lines[-1] == "the denoising loss is left out: the cards measured it for different tasks (eps; v)"
        assert rows_of(lines)["FID"] == ["1.00"] * len(cards)


def test_a_comparison_tells_two_checkpoints_of_a_run_apart() -> None:
    last, best = card("run"), card("run")
    last["subject"]["checkpoint"], best["subject"]["checkpoint"] = None, "best.ckpt"
    assert rows_of(comparison([last, best]))[""] == ["run", "run best.ckpt"]


def test_cards_of_different_protocols_are_refused_and_every_difference_is_named() -> None:
    other = card("two", protocol_repeats=1, protocol_extractor="efficientnet", protocol_new="thing")
    for cards in ([card(), other], [other, card()], [card(), card(), other]):
        with pytest.raises(UserError) as error:
            comparison(cards)
        text = str(error.value)
        assert "\n" not in text
        assert "one" in text
        assert "two" in text
        forwards = cards[0] is not other
        for key, first, second in (("repeats", 3, 1), ("extractor", "inception", "efficientnet"), ("new", None, "thing")):
            assert f"{key}: {first if forwards else second} and {second if forwards else first}" in text
        for key in ("num_reference", "reference:", "num:"):
            assert key not in text, "these are the same"


# -- files


def test_a_card_is_read_back_not_a_number_included(tmp_path: Path) -> None:
    made = card(results=summarised({"fid": {"samples": [math.nan]}}))
    found = read_card(written(tmp_path / "one", made))
    assert found is not None
    assert math.isnan(found["results"]["fid"]["samples"]["mean"])
    assert shown("fid", found["results"]["fid"]["samples"]) == "not a number"
    assert read_card(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["", "{", '{"protocol": {"a"', "[]", "{}", '"card"', '{"protocol": {}, "results": []}', "\x00"]
)
def test_a_damaged_card_is_one_line_that_names_it(content: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "one", content)
    for read in (read_card, newest_card):
        with pytest.raises(UserError, match=f"{re.escape(str(folder / 'card.json'))} .*evaluate again") as error:
            read(folder)
        assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_a_damaged_card(tmp_path: Path) -> None:
    written(tmp_path / "one", "")
    (tmp_path / "one" / "card.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="cannot be read"):
        read_card(tmp_path / "one")


def test_a_card_is_found_by_its_run_its_folder_or_its_file(tmp_path: Path) -> None:
    """Of a run, the one that was made last, whenever its file was copied."""
    for newest in ("aa", "bb", "cc"):  # whatever the order in which a folder is listed
        run = tmp_path / newest
        for number, name in enumerate(("aa", "bb", "cc")):
            day = "10" if name == newest else f"0{number + 1}"
            folder = written(run / "evaluation" / name, card(name, made={"date": f"2030-01-{day}T12:00:00+00:00"}))
            os.utime(folder / "card.json", (1e9 - (name == newest), 1e9 - (name == newest)))
        assert newest_card(run)["subject"]["what"] == newest
    (run / "evaluation" / "dd" / "work").mkdir(parents=True)  # an unfinished one
    assert newest_card(run)["subject"]["what"] == "cc"
    assert newest_card(run / "evaluation" / "aa")["subject"]["what"] == "aa"
    assert newest_card(run / "evaluation" / "cc" / "card.json")["subject"]["what"] == "cc"


@pytest.mark.parametrize("name", ["run", "missing", "run/evaluation/dd/card.json"])
def test_no_card_is_an_error_that_says_how_to_make_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "evaluation" / "dd").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no metric card: python -m flowergen\.evaluate run="):
        newest_card(tmp_path / name)
