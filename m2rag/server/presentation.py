"""How the page presents itself: its name, the filters it offers, questions to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Presentation:
    """What an application of its own says on the page.

    Attributes:
        title: in the bar, and of the tab.
        placeholder: in the field for the question.
        facets: metadata fields to choose values of -> what the page calls them. They are shown with each document, and
            narrow its list too. The metadata of all documents is kept in memory for that.
        questions: to begin with, shown while no document is open.

    Raises:
        ValueError: a text is empty.
    """

    title: str = "m2rag"
    placeholder: str = "Ask in your own words"
    facets: Mapping[str, str] = field(default_factory=dict)
    questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        texts = (self.title, self.placeholder, *self.facets, *self.facets.values(), *self.questions)
        if not all(text.strip() for text in texts):
            raise ValueError("the page's title, placeholder, facets, their names and questions must not be empty")
