"""The names that other libraries give to attacks, and their spelling here."""

import re

__all__ = ["ELSEWHERE", "translate"]

ELSEWHERE: dict[str, dict[str, str]] = {
    "ByzFL": {
        "SignFlipping": "ipm(epsilon=1)",
        "InnerProductManipulation": "ipm(epsilon=τ)",
        "Optimal_InnerProductManipulation": "optimalipm",
        "ALittleIsEnough": "alie(z=-τ)",
        "Optimal_ALittleIsEnough": "optimalalie",
        "Mimic": "mimic(client=ε)",
        "Inf": "nonfinite(value=inf)",
        "Gaussian": "noise(std=σ, mean=μ)",
        "LabelFlipping": "labelflip",
    },
    "Blades": {
        "SignFlip": "signflip",
        "LabelFlip": "labelflip",
        "Noise": "noise",
        "ALIE": "mirror(alie)",
        "IPM": "ipm",
        "MinMax": "minmax",
        "Adaptive": "fang",
        "SignGuard": "shuffle",
    },
    "krum": {
        "SignFlip": "ipm(epsilon=scale)",
        "ALIE": "alie",
        "Omniscient": "ipm(epsilon=κ)",
        "FullGradientNegation": "ipm(epsilon=κ)",
        "SmallPerturbation": "adaptive",
        "Gaussian": "noise",
        "Inf": "nonfinite(value=inf)",
        "NaN": "nonfinite",
        "Zero": "zero",
        "NoAttack": "none",
        "Empire": "ipm",
        "Little": "alie",
    },
    "FLPoison": {
        "ALIE": "mirror(alie)",
        "BadNets": "backdoor",
        "DBA": "dba",
        "EdgeCase": "both(edgecase, both(project, scaling))",
        "Gaussian": "noise",
        "IPM": "ipm",
        "LabelFlipping": "labelflip",
        "Mimic": "mimic",
        "MinMax": "minmax(direction=unit)",
        "MinSum": "minsum(direction=unit)",
        "ModelReplacement": "both(backdoor, scaling(factor=n))",
        "Neurotoxin": "both(backdoor, both(neurotoxin, project))",
        "SignFlipping": "signflip",
    },
    "the literature": {
        "FOE": "ipm",
        "FallOfEmpires": "ipm",
        "LIE": "alie",
        "FreeRider": "zero",
        "Stale": "replay",
        "Sleeper": "during(attack, start=20)",
        "ROP": "rop",
        "SCM": "scm",
        "PGA": "pga",
        "HybridSparse": "sparse",
        "PGD": "project",
        "TargetedLabelFlip": "semanticflip",
    },
}
"""By library and by the name there: the spelling here. Symbols are the library's."""


def translate(name: str) -> str:
    """Return a sentence that says how an attack of another library is spelled here.

    Case, underscores and the endings `Attack` and `Adversary` do not matter.

    Examples
    --------
    >>> translate("MinSum")
    '`MinSum` of FLPoison is `minsum(direction=unit)` here.'
    >>> translate("unheard")
    ''
    """
    wanted = _normalised(name)
    found = [
        f"`{there}` of {library} is `{here}` here"
        for library, names in ELSEWHERE.items()
        for there, here in names.items()
        if _normalised(there) == wanted
    ]
    return "; ".join(found) + "." if found else ""


def _normalised(name: str) -> str:
    return re.sub(r"(attack(er)?|adversary)$", "", name.lower().replace("_", ""))
