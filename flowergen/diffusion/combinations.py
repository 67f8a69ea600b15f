"""What goes together and what does not, and why. Imports nothing, as command lines are checked by it."""


def refusal(objective: str, zero_snr: bool, time_sampling: str, weighting: str) -> str | None:
    """Why a combination makes no sense; None where it does.

    Args:
        objective: eps, v, x0 or flow.
        zero_snr: whether the last step of the schedule is all noise.
        time_sampling: uniform or logit_normal.
        weighting: none or min_snr.
    """
    if objective == "eps" and zero_snr:
        return "eps is the whole input where the signal-to-noise ratio is 0, and says nothing of the picture: take v or x0"
    if zero_snr and weighting == "min_snr":
        return "min_snr weighs the step without signal by 0, so that nothing would be learnt where sampling starts"
    if objective == "flow" and zero_snr:
        return "flow has a straight path of its own, which ends in noise alone anyway"
    if objective == "flow" and weighting == "min_snr":
        return "min_snr is for eps, v and x0; flow is weighed by when it is trained: take time_sampling=logit_normal"
    if objective != "flow" and time_sampling != "uniform":
        return f"logit_normal times are for flow; the steps of {objective} are drawn uniformly"
    return None


def latent_refusal(objective: str, schedule: str) -> str | None:
    """Why an objective and a schedule do not go together where x_0 has no bounds; None where they do.

    Args:
        objective: eps, v, x0 or flow.
        schedule: linear or cosine.
    """
    if objective == "eps" and schedule == "cosine":
        return (
            "with model.schedule=cosine the first step divides the network's error by alpha = 5e-5, and latents have no bounds "
            "to clip it to: take schedule=linear, or v"
        )
    return None


def sampler_refusal(objective: str, sampler: str) -> str | None:
    """Why a sampler is not for a model; None where it is.

    Args:
        objective: eps, v, x0 or flow.
        sampler: key of ``SAMPLERS``.
    """
    if sampler in ("euler", "heun") and objective != "flow":
        return f"{sampler} follows a flow, and the model predicts {objective}: take dpmpp_2m, ddim or ddpm"
    return None
