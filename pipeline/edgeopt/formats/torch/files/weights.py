"""Weight files that are pickles: the code that loading them would run, and how to avoid it."""

from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.untrusted import torch_pickles

RESAVE = "torch.save(model.state_dict(), 'weights.pt')"


def check_pickles(path: Path, *, trust: bool, legacy: bool) -> tuple[str, ...]:
    """Scan a checkpoint without loading it; return notes on the code that ``trust`` permits.

    Raises:
        UsageError: the checkpoint references a global that ``torch.load(weights_only=True)`` rejects.
    """
    refused = torch_pickles.refused(path, legacy=legacy)
    if not refused:
        return ()
    refused = torch_pickles.most_informative(refused)
    names = ", ".join(refused[:3]) + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")
    if trust:
        return (f"{path.name} can run code when it is loaded ({names}); model.trust allows it",)
    if any("torch.nn.modules." in name for name in refused):
        raise UsageError(
            f"{path} is a whole pickled module, not weights: loading it would run code ({names})",
            fix=f"run {RESAVE} where the network's code is available, and use that file; or, if you trust "
            f"its source, use model: {{factory: 'module:function', weights: {path.name}, trust: true}}",
        )
    raise UsageError(
        f"{path}: loading it could run code: it references {names}",
        fix=f"save the weights alone with {RESAVE}; or, if you trust its source, set model.trust: true",
    )
