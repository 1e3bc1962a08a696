"""The same corpora, runs and re-scorings in one process that nobody disturbs, held against the soak's, byte for byte.

Configs are copied, since a landed corpus's settings depend on what was there when it landed; everything else is made again.
"""

from collections.abc import Iterator

from bliss_ops import pipeline
from bliss_ops.lake import Lake, write_bytes
from bliss_ops.manifest import Manifest, check_content, find_manifest, read_manifest
from bliss_ops.rescoring import ScoreModel, score_model

VIEWS = frozenset({"report"})  # made again whenever something new is there, with times of day in them


def make(soaked: Lake, reference: Lake) -> None:
    """Every finished corpus, round and set of scores of the soak's lake, in this process."""
    for name in soaked.corpus_names():
        _copy_config(soaked, reference, f"corpora/{name}")
        pipeline.ingest(reference, name)
    for name in soaked.run_names():
        _copy_config(soaked, reference, f"runs/{name}")
        run = reference.run(name)
        for number in range(1, run.config.num_rounds + 1):
            if find_manifest(soaked.run(name).round(number) / "evaluation"):
                pipeline.run_round(reference, name, number)
    for corpus, model in _rescored(soaked, reference):
        pipeline.rescore(model.run, model.round_number, reference.corpus(corpus))


def differences(soaked: Lake, reference: Lake) -> Iterator[str]:
    """Artifacts of the soak that are not those of the reference, or whose files are not what their manifest says."""
    for lake, other, missing in ((soaked, reference, "the reference has none"), (reference, soaked, "the soak has none")):
        for path in sorted(lake.root.rglob("manifest.json")):
            manifest = read_manifest(path.parent, made_by="the soak")
            if manifest.stage in VIEWS:
                continue
            twin = find_manifest(other.root / manifest.artifact)
            if twin is None:
                yield f"{manifest.artifact}: {missing}"
            elif lake is soaked:
                yield from _unlike(lake, manifest.artifact, manifest, twin)


def num_compared(soaked: Lake) -> int:
    """Files whose bytes `differences` has looked at."""
    manifests = (read_manifest(path.parent, made_by="the soak") for path in soaked.root.rglob("manifest.json"))
    return sum(len(manifest.outputs) for manifest in manifests if manifest.stage not in VIEWS)


def _unlike(lake: Lake, address: str, manifest: Manifest, twin: Manifest) -> Iterator[str]:
    if manifest.fingerprint != twin.fingerprint:
        yield f"{address}: made from other settings or inputs than the reference"
    files, others = ({output.path: output.sha256 for output in each.outputs} for each in (manifest, twin))
    for path in sorted(files.keys() | others.keys()):
        if files.get(path) != others.get(path):
            yield f"{address}/{path}: {files.get(path, 'nothing')[:12]}, the reference has {others.get(path, 'nothing')[:12]}"
    try:
        check_content(lake.root / address, manifest.outputs, made_by="the soak")
    except ValueError as error:
        yield str(error)


def _rescored(soaked: Lake, reference: Lake) -> Iterator[tuple[str, ScoreModel]]:
    """Corpus and score model of every set of scores that is no round's own."""
    for corpus, name in soaked.further_score_names():
        identity = read_manifest(soaked.further_scores(corpus, name), made_by="the soak").identity
        yield corpus, score_model(reference.run(identity["run"]), identity["round"])


def _copy_config(soaked: Lake, reference: Lake, directory: str) -> None:
    write_bytes(reference.root / directory / "config.json", (soaked.root / directory / "config.json").read_bytes())
