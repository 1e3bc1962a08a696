"""How much two selections share, for pairs that can be compared: of one sequence set, and of one round or of one run.

A pair is counted again only when one of its selections changed; its row of the ledger, named by both ids, says what it was counted from.
"""

from typing import TYPE_CHECKING

from bliss_ops.store import tables
from bliss_ops.store.transactions import in_transaction, transaction

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Every pair with what its count is made from, and the same of the count that is there.
PAIRS = """
with made_from as (select owner as score_run_id, md5(string_agg(concat_ws('|', shard_id, sha256), ',' order by shard_id)) as digest
                   from loads where kind = 'selections' group by owner),
     selected as (select r.score_run_id, r.sequence_set, r.run, r.round, m.digest from score_runs r join made_from m using (score_run_id)),
     pairs as (select a.score_run_id as a, b.score_run_id as b, a.digest || b.digest as digest
               from selected a join selected b on a.sequence_set = b.sequence_set and (a.round = b.round or a.run = b.run)
               where a.score_run_id < b.score_run_id)
select p.a, p.b, p.digest from pairs p left join loads l on l.kind = 'overlaps' and l.owner = p.a || ' ' || p.b
where l.sha256 is distinct from p.digest order by p.a, p.b
"""
GONE = """
select owner from loads where kind = 'overlaps' and exists (
    select 1 from unnest(string_split(owner, ' ')) as side(id)
    where id not in (select s.owner from loads s where s.kind = 'selections'))
"""
SHARED_WITH = """
select y.score_run_id, count(*)
from selections x join selections y on y.sequence_id = x.sequence_id
where x.score_run_id = $a and list_contains($others, y.score_run_id)
group by y.score_run_id
"""
SIZES = "select owner, sum(num_rows)::bigint from loads where kind = 'selections' group by owner"
DELETE = "delete from overlap_summaries where a || ' ' || b = $owner"
INSERT = "insert into overlap_summaries values ($a, $b, $num_a, $num_b, $num_both, $jaccard)"


def refresh(con: "DuckDBPyConnection") -> None:
    """Count the pairs whose selections changed."""
    for (owner,) in con.execute(GONE).fetchall():
        in_transaction(con, (DELETE, tables.FORGET), {"kind": "overlaps", "owner": owner, "shard": 0})
    stale: dict[str, dict[str, str]] = {}
    for a, b, digest in con.execute(PAIRS).fetchall():
        stale.setdefault(a, {})[b] = digest
    sizes = dict(con.execute(SIZES).fetchall()) if stale else {}
    for a, others in stale.items():
        shared = dict(con.execute(SHARED_WITH, {"a": a, "others": list(others)}).fetchall())
        with transaction(con):
            for b, digest in others.items():
                key = {"kind": "overlaps", "owner": f"{a} {b}", "shard": 0}
                num_both = shared.get(b, 0)
                con.execute(DELETE, {"owner": key["owner"]})
                con.execute(tables.FORGET, key)
                counts = {"a": a, "b": b, "num_a": sizes[a], "num_b": sizes[b], "num_both": num_both}
                con.execute(INSERT, counts | {"jaccard": num_both / (sizes[a] + sizes[b] - num_both)})
                con.execute(tables.REMEMBER, key | {"sha256": digest, "num_rows": 1})
