import itertools

from flowergen.diffusion.combinations import refusal, sampler_refusal
from flowergen.diffusion.samplers import SAMPLERS

OBJECTIVES = ("eps", "v", "x0", "flow")


def test_only_combinations_that_make_sense_pass():
    """All 32 of them: each refusal names what it is about, and all else passes."""
    passed = set()
    for combination in itertools.product(OBJECTIVES, (False, True), ("uniform", "logit_normal"), ("none", "min_snr")):
        objective, zero_snr, time_sampling, weighting = combination
        reason = refusal(*combination)
        if reason is None:
            passed.add(combination)
            continue
        assert (
            (zero_snr and "eps equals the input" in reason and objective == "eps")
            or (zero_snr and weighting == "min_snr" and "without signal" in reason)
            or (zero_snr and objective == "flow" and "its own straight path" in reason)
            or (objective == "flow" and weighting == "min_snr" and "min_snr is for" in reason)
            or (objective != "flow" and time_sampling == "logit_normal" and f"steps of {objective}" in reason)
        )
    assert passed == {
        *((objective, False, "uniform", weighting) for objective in ("eps", "v", "x0") for weighting in ("none", "min_snr")),
        *((objective, True, "uniform", "none") for objective in ("v", "x0")),
        *(("flow", False, time_sampling, "none") for time_sampling in ("uniform", "logit_normal")),
    }


def test_samplers_go_with_the_paths_that_they_were_made_for():
    """Each refusal names the sampler and others to take instead, all of which are allowed."""
    for objective in OBJECTIVES:
        allowed = {"dpmpp_2m", "ddim", "ddpm", *(("euler", "heun") if objective == "flow" else ())}
        for sampler in SAMPLERS:
            reason = sampler_refusal(objective, sampler)
            assert (reason is None) == (sampler in allowed)
            if reason:
                assert reason.startswith(f"{sampler} ")
                instead = set(SAMPLERS) & set(reason.split(": use ")[1].replace(" or", ",").split(", "))
                assert instead == allowed
