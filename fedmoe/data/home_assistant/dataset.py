"""Spoken smart-home commands with their structured commands: the built-in default dataset."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Example, Share, Splits, drop_conflicts, prompt_key, split_by_group
from fedmoe.data.home_assistant.household import LANGUAGES, Domain
from fedmoe.errors import DataError
from fedmoe.section import section
from fedmoe.seeds import derive
from fedmoe.system.extras import require

if TYPE_CHECKING:
    from fedmoe.data.home_assistant.sampler import Sampler
    from fedmoe.data.home_assistant.templates import Template

Count = Annotated[int, Field(ge=1)]


@section
class HomeAssistant(Dataset):
    """Commands such as "turn on the kitchen lights" -> `TurnOn area: kitchen, domain: light`.

    The response is the intent without its `Hass` prefix, then `slot: value` pairs in alphabetical
    order of the slots. Values are what Home Assistant would get: "half an hour" is `minutes: 30`,
    "warm white" is `temperature: 2700`; locking is TurnOn and unlocking TurnOff, opening a cover is
    TurnOn. A slot the sentence leaves to its context (the room one stands in) is left out. Of the
    slots a template fills silently, only those that change the meaning are kept (see
    `templates._fixed`), with `answer` for the kind of question: any, all, which, how_many.

    A template is one line of the intents file. Splits are by template, stratified by intent and
    slot combination: the test asks for meanings seen in training in phrasings that were not.
    Where two templates make the same prompt with different responses, the first in the file's
    order (intents alphabetically) is kept.

    Source: the package `home-assistant-intents` (Apache-2.0); values and English repairs are ours.
    The other languages are as the file has them: it was made to recognise speech, so articles and
    endings often disagree.
    """

    name: Literal["home_assistant"] = "home_assistant"
    domains: tuple[Domain, ...] = ()
    """Device domains to keep; empty keeps all nine."""
    languages: tuple[str, ...] = ("en",)
    """Languages to keep: en, de, fr, es, it, nl."""
    label: Literal["domain", "language"] = "domain"
    """The property that a client's examples share most: a device domain, or a language."""
    per_template: Count = 48
    """Most examples from one sentence template."""
    per_domain: Count = 2000
    """Most examples of one domain in one language; its templates share them equally."""
    test_share: Share = 0.15
    """Share of the templates that are held out for testing."""
    validation_share: Share = 0.1
    """Share of the templates that are held out for validation."""
    plain: ClassVar[bool] = True

    def load(self, seed: int) -> Splits:
        """Return the splits; the same seed gives the same examples in the same order.

        Raises:
            DataError: a language we have no words for.
            FedMoEError: the packages of the extra `home` are not installed.
        """
        require("data.name 'home_assistant'", "home", "hassil", "home_assistant_intents")
        _check_languages(self.languages)
        drawn = [e for language in self.languages for e in self._examples(language, seed)]
        return split_by_group(
            drop_conflicts(drawn),
            seed,
            validation_share=self.validation_share,
            test_share=self.test_share,
            stratum=lambda example: example.group.rpartition("/")[0],
        )

    def _examples(self, language: str, seed: int) -> Iterable[Example]:
        from fedmoe.data.home_assistant import templates as source
        from fedmoe.data.home_assistant.sampler import Sampler

        found = [t for t in source.templates(language) if t.domain in (self.domains or (t.domain,))]
        lines = Counter(template.domain for template in found)
        sampler = Sampler(source.rules(language), source.choices(language), random.Random())
        for template in found:
            # A stream per template: filtering domains does not change the examples of the rest.
            sampler.generator.seed(derive(seed, "home_assistant", template.group, template.domain))
            share = max(1, self.per_domain // lines[template.domain])
            label = template.domain if self.label == "domain" else language
            yield from _draw(template, sampler, min(self.per_template, share), label)


def _draw(template: "Template", sampler: "Sampler", count: int, label: str) -> list[Example]:
    """Return up to `count` different examples of one template, fewer when it has no more."""
    from fedmoe.data.home_assistant.grammar import inflect, is_sensible

    found: dict[str, Example] = {}
    language = template.group.partition("/")[0]
    for _ in range(4 * count):
        device = sampler.generator.choice(template.devices)
        media = sampler.generator.choice(MEDIA)
        prompt, slots = sampler.sentence(template.expression, (device, media))
        prompt = inflect(prompt) if language == "en" else prompt
        if not is_sensible(prompt, language):
            continue
        response = write_response(template.intent, dict(template.fixed) | slots)
        found.setdefault(prompt_key(prompt), Example(prompt, response, label, template.group))
        if len(found) == count:
            break
    return list(found.values())


MEDIA = ("artist", "album", "track", "playlist", "podcast", "movie", "tv_show")


def write_response(intent: str, slots: Mapping[str, str]) -> str:
    """Return the structured command as one line, slots in alphabetical order."""
    # "slot: value" has a space before the value, so it is the same token as in the prompt.
    return f"{intent} {', '.join(f'{slot}: {slots[slot]}' for slot in sorted(slots))}".rstrip()


def _check_languages(languages: tuple[str, ...]) -> None:
    faults = []
    for language in languages:
        if language not in LANGUAGES:
            near = get_close_matches(language, LANGUAGES, n=1)
            faults.append(repr(language) + (f" (did you mean {near[0]}?)" if near else ""))
    if faults or not languages:
        raise DataError(
            f"home_assistant: no words for language {', '.join(faults) or 'list ()'};"
            f" supported: {', '.join(LANGUAGES)}"
        )
