"""From round to round: a page for each, with links to the one before and after, and which pages have to be made anew.

`index.html` is the last finished round's page. A page stays as it is while what it was made from does; only its links are written
again when a round follows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape
from upath import UPath

from bliss_ops.lake import Run, write_bytes
from bliss_ops.manifest import find_manifest

INDEX = "index.html"
BEGIN, END = "<!-- rounds -->", "<!-- end of rounds -->"
MADE_FROM = ("scores", "fidelity", "selection", "pretrain", "evaluation")
SHOWN = ("scores", "selection", "evaluation")  # without which there is no page


def page_of(round_number: int) -> str:
    """The file name of a round's page."""
    return f"round-{round_number:02d}.html"


def rounds_shown(run: Run, last_round: int, made: Mapping[str, str]) -> list[int]:
    """The rounds that have a page: those whose artifacts are there, and those whose page was made while they were."""
    return [*(number for number in range(1, last_round) if page_of(number) in made or is_whole(run, number)), last_round]


def is_whole(run: Run, round_number: int) -> bool:
    """Whether there is what a round's page cannot do without."""
    return all(find_manifest(run.round(round_number) / name) for name in SHOWN)


def links(round_number: int, rounds: Sequence[int]) -> Markup:
    """Links to the rounds before and after, and to the index; nothing where there is one round."""
    if len(rounds) == 1:
        return Markup(BEGIN + END)  # noqa: S704 - constants
    parts, at = [], rounds.index(round_number)
    if at > 0:
        parts.append(f'<a rel="prev" href="{page_of(rounds[at - 1])}">← round {rounds[at - 1]}</a>')
    parts += [
        f'<b aria-current="page">round {number}</b>' if number == round_number else f'<a href="{page_of(number)}">{number}</a>'
        for number in rounds
    ]
    if at < len(rounds) - 1:
        parts.append(f'<a rel="next" href="{page_of(rounds[at + 1])}">round {rounds[at + 1]} →</a>')
    parts.append(f'<a href="{escape(INDEX)}">latest</a>')
    return Markup(f'{BEGIN}<nav class="rounds" aria-label="Rounds">{" ".join(parts)}</nav>{END}')  # noqa: S704 - numbers and constants


def made_from(run: Run, round_number: int) -> str:
    """A digest of everything a round's page shows, the runs beside it included."""
    digests = []
    for one in (run, *(run.lake.run(name) for name in run.config.compare_with)):
        manifests = [find_manifest(one.round(round_number) / name) for name in MADE_FROM]
        digests.append([one.name, *(manifest.digest if manifest else "" for manifest in manifests)])
    return hashlib.sha256(json.dumps([run.config.num_rounds, digests]).encode()).hexdigest()[:16]


def pages_made(directory: UPath) -> dict[str, str]:
    """What the pages that are there were made from, by file name."""
    try:
        summary = json.loads((directory / "summary.json").read_bytes())
    except FileNotFoundError:
        return {}
    return dict(summary.get("pages", {}))


def link_again(path: UPath, round_number: int, rounds: Sequence[int]) -> bool:
    """Write the links of a page that is there again; False where it is not."""
    try:
        html = path.read_bytes().decode()
    except FileNotFoundError:
        return False
    before, begin, rest = html.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    write_bytes(path, (before + str(links(round_number, rounds)) + after).encode())
    return True
