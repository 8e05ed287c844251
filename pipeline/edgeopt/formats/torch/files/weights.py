"""Files of weights that are pickles: what loading them would run, and what to do about it."""

from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.torch.files import pickle as torch_pickle

RESAVE = "torch.save(model.state_dict(), 'weights.pt')"


def check_pickles(path: Path, *, trust: bool, legacy: bool) -> tuple[str, ...]:
    """Look through a checkpoint without loading it; returns notes on what ``trust`` let through.

    Raises:
        UsageError: it names anything that ``torch.load(weights_only=True)`` would refuse.
    """
    refused = torch_pickle.refused(path, legacy=legacy)
    if not refused:
        return ()
    # Names say more than instructions do, which are refused for what they could bring.
    refused = [name for name in refused if not name.startswith(torch_pickle.INSTRUCTION)] or refused
    names = ", ".join(refused[:3]) + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")
    if any("torch.nn.modules." in name for name in refused):
        raise UsageError(
            f"{path} is a whole pickled module, not weights: loading it would run code ({names})",
            fix=f"where the network's code is at hand: {RESAVE}, and give that file",
        )
    if trust:
        return (f"{path.name} can run code when it is loaded ({names}); model.trust allows it",)
    raise UsageError(
        f"{path}: loading it could run code: it holds {names}",
        fix=f"save the weights alone, {RESAVE}; or, if you trust where it comes from, set model.trust: true",
    )
