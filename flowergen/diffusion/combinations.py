"""What goes together and what does not, and why. Imports nothing, as command lines are checked by it.

Each function returns the reason, or None if there is none. Objectives are eps, v, x0 and flow.
"""


def refusal(objective: str, zero_snr: bool, time_sampling: str, weighting: str) -> str | None:
    """Why the settings of a training make no sense together.

    Args:
        objective: see above.
        zero_snr: whether the last step of the schedule is all noise.
        time_sampling: uniform or logit_normal.
        weighting: none or min_snr.
    """
    if objective == "eps" and zero_snr:
        return "eps equals the input where the signal-to-noise ratio is 0, and predicting it teaches nothing: use v or x0"
    if zero_snr and weighting == "min_snr":
        return "min_snr gives the step without signal a weight of 0, so nothing would be learnt where sampling starts"
    if objective == "flow" and zero_snr:
        return "flow has its own straight path, which ends in pure noise anyway"
    if objective == "flow" and weighting == "min_snr":
        return "min_snr is for eps, v and x0; flow is weighted by its distribution of times: use time_sampling=logit_normal"
    if objective != "flow" and time_sampling != "uniform":
        return f"logit_normal times are for flow; the steps of {objective} are drawn uniformly"
    return None


def latent_refusal(objective: str, schedule: str) -> str | None:
    """Why an objective and a schedule, linear or cosine, do not go together where x_0 has no bounds."""
    if objective == "eps" and schedule == "cosine":
        return (
            "with model.schedule=cosine the first step divides the network's error by alpha = 5e-5, and latents have no bounds "
            "to clip it to: use schedule=linear, or v"
        )
    return None


def sampler_refusal(objective: str, sampler: str) -> str | None:
    """Why a sampler, a key of ``SAMPLERS``, is not for a model's objective."""
    if sampler in ("euler", "heun") and objective != "flow":
        return f"{sampler} follows a flow, and the model predicts {objective}: use dpmpp_2m, ddim or ddpm"
    return None
