"""What the pages show, and what they say where there is nothing to show."""

import html
import re
from pathlib import Path

import pytest
from markupsafe import escape
from starlette.testclient import TestClient
from upath import UPath

from bliss_ops import store
from bliss_ops.explorer.app import create_app
from bliss_ops.explorer.guard import LOOPBACK
from bliss_ops.explorer.pages import number, printable
from bliss_ops.explorer.snapshots import Snapshots
from bliss_ops.lake import Lake
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.lakes import SCRIPT, make_corpus, make_run

RUN = "demo-bliss-s0/round-01"
PAGES = [
    "/",
    f"/run/{RUN}",
    f"/examples/{RUN}",
    f"/examples/{RUN}?category=decile-10",
    f"/sources/{RUN}",
    f"/domains/{RUN}",
    f"/rounds/{RUN}",
    f"/beside/{RUN}",
    "/overlap",
    "/document/tiny/3",
    "/dag/bliss_round",
    "/dag/other",
    "/sql",
]


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


@pytest.mark.parametrize("address", PAGES)
def test_every_page_is_whole_and_brings_no_script_or_style_of_its_own(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 200
    page = answer.text
    assert page.rstrip().endswith("</html>")
    assert page.count("<script") == 1
    assert "/static/explorer.js" in page
    assert not re.search(r"\son\w+=|<style|\sstyle=|javascript:", page)  # the policy would block it
    assert len(re.findall(r"<h1>", page)) == 1
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        assert "<caption" in table
    assert not re.search(r'(src|href)="(https?:)?//', page)  # nothing from another server


def test_home_lists_every_score_run_with_its_numbers(client: TestClient) -> None:
    page = client.get("/").text
    for score_run_id in (RUN, "demo-bliss-s0/round-02", "demo-random-s0/round-01"):
        assert f"/run/{score_run_id}" in page
    assert page.count('class="spark"') == 5
    assert "4.000" in page  # held-out loss
    assert "12 20%" in text_of(page)  # 12 of 60 sequences are kept
    imported = client.get("/?kind=imported").text
    assert "scores/tiny/elsewhere" in imported
    assert RUN not in imported


def test_rescored_and_imported_scores_say_what_they_are(client: TestClient) -> None:
    rescored = text_of(client.get("/run/scores/tiny/demo-bliss-s0-round-01-0a1b2c3d").text)
    assert "Re-scored by demo-bliss-s0, round 1" in rescored
    assert "nothing was selected by these scores" in rescored
    assert "By round 1 of demo-bliss-s0" in rescored
    imported = text_of(client.get("/run/scores/tiny/elsewhere").text)
    assert "Imported scores" in imported
    assert "seed" not in imported
    beside = text_of(client.get(f"/beside/{RUN}?other=scores/tiny/elsewhere").text)
    assert "its best fifth stands for it" in beside


def test_a_score_run_has_its_histogram_with_the_threshold_and_its_training_curves(client: TestClient, lake: Lake) -> None:
    page = client.get(f"/run/{RUN}").text
    figure = page[page.index('id="distribution"') :].split("</figure>")[0]
    assert 'class="threshold"' in figure
    selected = sum(int(n) for n in re.findall(r'<rect class="chosen"[^>]*><title>[^<]*sequences, (\d+) selected<', figure))
    assert selected == 12
    assert "40 outer steps" in text_of(page)
    assert "no outer training loop" in text_of(client.get("/run/demo-random-s0/round-01").text)
    with Snapshots(lake).cursor() as cursor:
        (threshold,) = cursor.execute("select threshold from run_summaries where score_run_id = ?", [RUN]).fetchone() or (0.0,)
    assert f"threshold {threshold:.4g}" in figure


def test_selected_and_rejected_documents_stand_side_by_side_as_text(client: TestClient) -> None:
    page = client.get(f"/examples/{RUN}").text
    selected, rejected = page[page.index('aria-label="selected"') :].split('aria-label="rejected"')
    assert selected.count("<article") == 8
    assert rejected.count("<article") == 8
    assert "prose document" in selected
    assert text_of(page).count("the quick brown fox") > 4


def test_script_in_a_document_is_shown_as_text(client: TestClient) -> None:
    """Document 0 of shard 1 is a script: as a document, and as an example of its decile."""
    page = client.get(f"/document/tiny/{ROWS_PER_SHARD}").text
    assert str(escape(SCRIPT)) in page
    assert "<script>" not in page
    everything = "".join(
        client.get(f"/examples/{RUN}?category={c}").text for c in ["best", "worst", *(f"decile-{k:02d}" for k in range(1, 11))]
    )
    assert str(escape(SCRIPT)) in everything
    assert "<script>" not in everything


def test_a_document_has_its_score_by_every_score_run(client: TestClient, lake: Lake) -> None:
    page = text_of(client.get("/document/tiny/1").text)
    assert "prose document 1." in page
    for score_run_id in (RUN, "demo-bliss-s0/round-02", "demo-random-s0/round-01"):
        assert score_run_id in page
    # Document 1 is 8 tokens of sequence 1 and 16 of sequence 2.
    with Snapshots(lake).cursor() as cursor:
        scores = dict(
            cursor.execute("select sequence_id, score from all_scores where score_run_id = ? and sequence_id in (1, 2)", [RUN]).fetchall()
        )
    assert number((8 * scores[1] + 16 * scores[2]) / 24) in page


def test_leaderboards_sort_filter_and_page(client: TestClient) -> None:
    def names(address: str) -> list[str]:
        return re.findall(r'class="text name" scope="row">([^<]*)<', client.get(address).text)

    assert names(f"/sources/{RUN}") == ["prose", "code"]  # shard 0 scores higher
    assert names(f"/sources/{RUN}?order=worst") == ["code", "prose"]
    assert names(f"/sources/{RUN}?order=name") == ["code", "prose"]
    assert names(f"/domains/{RUN}?part=CODE") == ["code.example"]
    assert names(f"/domains/{RUN}?least=1000") == []
    assert "loosen" in client.get(f"/domains/{RUN}?least=1000").text
    assert names(f"/sources/{RUN}?page=2") == []
    assert client.get(f"/sources/{RUN}?order=score;drop").status_code == 400


def test_between_rounds_shows_the_share_of_each_source(client: TestClient) -> None:
    page = text_of(client.get(f"/rounds/{RUN}").text)
    assert "round 1" in page
    assert "round 2" in page
    assert "prose" in page
    assert "Only one round of demo-random-s0" in text_of(client.get("/rounds/demo-random-s0/round-01").text)


def test_two_score_runs_beside_each_other(client: TestClient, lake: Lake) -> None:
    page = text_of(client.get(f"/beside/{RUN}?other=demo-random-s0/round-01").text)
    with Snapshots(lake).cursor() as cursor:
        ours, theirs = (
            {row[0] for row in cursor.execute("select sequence_id from selections where score_run_id = ?", [name]).fetchall()}
            for name in (RUN, "demo-random-s0/round-01")
        )
    assert f"exactly {len(ours & theirs)} sequences" in page
    assert f"Kept by this one only {len(ours - theirs) / 60:.0%}" in page
    assert "of 60 sequences" in page
    assert client.get(f"/beside/{RUN}?other=demo-bliss-s9/round-01").status_code == 404
    assert f"{len(ours & theirs) / len(ours | theirs):.2f}" in text_of(client.get("/overlap").text)


def test_a_dag_that_is_not_ours_says_so(client: TestClient) -> None:
    assert "does not belong to BLISS" in client.get("/dag/billing").text
    assert RUN in client.get("/dag/bliss_round").text
    assert "0a1b2c3d" in client.get("/dag/bliss_rescore").text
    assert RUN + "<" not in client.get("/dag/bliss_rescore").text


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/run/nothing/round-01", 404),
        ("/nothing", 404),
        ("/static/../app.py", 404),
        ("/static/%2e%2e%2fapp.py", 404),
        ("/document/tiny/999999", 404),
        ("/document/..%2f..%2fetc/1", 404),
        ("/document/tiny/x", 400),
        (f"/examples/{RUN}?category=decile-99", 404),
        ("/run/" + "x" * 3000, 404),
        ("/?page=0", 400),
        ("/docs", 404),
        ("/openapi.json", 404),
    ],
)
def test_what_is_not_there(client: TestClient, address: str, status: int) -> None:
    answer = client.get(address)
    assert answer.status_code == status
    assert "<h1>" in answer.text


def test_an_empty_lake_says_what_to_do(tmp_path: Path) -> None:
    with TestClient(create_app(Lake.open(tmp_path), hosts=LOOPBACK), base_url="http://localhost") as client:
        for address in ("/", f"/run/{RUN}", "/sql", "/overlap"):
            answer = client.get(address)
            assert answer.status_code == 404
            assert "bliss run smoke" in answer.text


def test_a_new_snapshot_is_seen_at_once_and_the_old_one_stays_readable(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path / "lake")
    make_run(lake, "bliss")
    store.sync_lake(lake)
    snapshots = Snapshots(lake)
    with snapshots.cursor() as before, TestClient(create_app(lake, hosts=LOOPBACK), base_url="http://localhost") as client:
        assert "demo-random-s0" not in client.get("/").text
        make_run(lake, "random")
        store.sync_lake(lake)  # publishes while `before` is open
        assert "demo-random-s0" in client.get("/").text
        with snapshots.cursor() as after:
            assert after.execute("select count(*) from score_runs").fetchone() == (2,)
        assert before.execute("select count(*) from score_runs").fetchone() == (1,)


def test_a_snapshot_on_an_object_store_is_copied_once_per_version(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Lake(UPath("memory://explorer-lake"))
    remote.root.mkdir(parents=True, exist_ok=True)
    data = Path(lake.score_store.path).read_bytes()
    remote.score_store.write_bytes(data)
    fetched: list[str] = []
    original = type(remote.root.fs).get_file
    monkeypatch.setattr(type(remote.root.fs), "get_file", lambda self, *a, **k: (fetched.append(a[0]), original(self, *a, **k))[1])
    monkeypatch.setattr("bliss_ops.explorer.snapshots.SECONDS_BETWEEN_LOOKS", 0.0)
    snapshots = Snapshots(remote)
    first = snapshots.file()
    assert snapshots.file() == first
    assert Snapshots(remote).file() == first  # another process on this machine
    assert len(fetched) == 1
    remote.score_store.write_bytes(data + b"\0" * 4096)
    second = snapshots.file()
    assert second != first
    assert len(fetched) == 2
    assert not first.exists()


def test_numbers_and_control_characters_as_people_read_them() -> None:
    assert [number(v, 2) for v in (-0.001, -1.5, None, 2.0)] == ["0.00", "\N{MINUS SIGN}1.50", "\N{EN DASH}", "2.00"]
    assert printable("a\x00b\r\nc\td") == "a\N{REPLACEMENT CHARACTER}b\nc\td"
