"""Page data of the cards: the artifact to ship on each device, with links to its file."""

from edgeopt.reports.cards import Card, address, cards
from edgeopt.reports.pagedata.findings import Data, cut, finite
from edgeopt.reports.pagedata.rows import SENTENCE
from edgeopt.results import Report


def cards_of(report: Report, base: str) -> list[Data]:
    """The cards; ``base`` leads from the page to the run's folder, such as ``../``."""
    return [_card(card, base) for card in cards(report)]


def _card(card: Card, base: str) -> Data:
    return {
        "device": cut(card.device),
        "status": card.status,
        "headline": cut(card.headline),
        "artifact": cut(card.artifact),
        "path": cut(card.path),
        "link": address(card.path, base),
        "lines": [
            [cut(line.title), cut(line.text), None if line.share is None else finite(line.share)]
            for line in card.lines
        ],
        "reason": cut(card.reason, SENTENCE),
        "pull": cut(card.pull, SENTENCE),
    }
