"""Tables of the score store, and how each kind of content enters and leaves them; docs/store.md shows what to ask.

Tables hold what Parquet holds and summaries computed from it, nothing more, so the file can always be rebuilt. A *score run* is a set
of scores of one sequence set by one score model, named like its directory: `demo-bliss-s0/round-01`, `scores/c4/may-round-02-0a1b2c3d`.
Sequence ids are unique within a *sequence set* (corpus, tokenizer, length), document ids within a corpus. `sequences_digest` says
of which content of the set the scores are: the store never holds scores of two contents of one set.
"""

from dataclasses import dataclass

TABLES = """
create table if not exists loads (
    kind varchar not null, owner varchar not null, shard_id integer not null, sha256 varchar not null, num_rows bigint not null,
    primary key (kind, owner, shard_id)
);
create table if not exists score_runs (
    score_run_id varchar not null, kind varchar not null, run varchar not null, round integer not null, recipe varchar not null,
    method varchar not null, seed bigint not null, corpus varchar not null, sequence_set varchar not null,
    sequences_digest varchar not null, selector_fingerprint varchar not null, scores_fingerprint varchar not null,
    num_sequences bigint not null, finished_at timestamp not null
);
create table if not exists all_scores (
    score_run_id varchar not null, shard_id integer not null, sequence_id bigint not null, score float not null
);
create table if not exists selections (
    score_run_id varchar not null, shard_id integer not null, sequence_id bigint not null, score float not null
);
create table if not exists influences (
    score_run_id varchar not null, sequence_id bigint not null, influence double not null, score float not null
);
create table if not exists evaluations (
    score_run_id varchar not null, task varchar not null, metric varchar not null, value double not null,
    standard_error double, num_examples bigint not null, step bigint, num_tokens bigint
);
create table if not exists questions (
    score_run_id varchar not null, task varchar not null, question bigint not null, choice integer not null, step bigint not null,
    log_likelihood double not null, num_bytes integer not null, num_characters integer, is_right boolean not null,
    is_greedy boolean not null
);
create table if not exists selection_counts (
    score_run_id varchar not null, num_candidates bigint not null, num_selected bigint not null, threshold double,
    num_ties_at_threshold bigint, num_ties_kept bigint, num_tokens bigint
);
create table if not exists spans (
    sequence_set varchar not null, corpus varchar not null, shard_id integer not null, sequence_id bigint not null,
    document_id bigint not null, num_tokens integer not null
);
create table if not exists documents (
    corpus varchar not null, shard_id integer not null, document_id bigint not null, source varchar not null, url varchar, domain varchar,
    month varchar, num_bytes bigint not null
);

create table if not exists run_summaries (
    score_run_id varchar not null, num_sequences bigint not null, mean double not null, standard_deviation double not null,
    minimum float not null, maximum float not null, threshold double, num_selected bigint
);
create table if not exists score_histograms (
    score_run_id varchar not null, bin integer not null, lowest double not null, highest double not null,
    num_sequences bigint not null, num_selected bigint not null
);
create table if not exists decile_summaries (
    score_run_id varchar not null, decile integer not null, lowest float not null, highest float not null, mean double not null,
    num_sequences bigint not null, num_selected bigint not null
);
create table if not exists example_sequences (
    score_run_id varchar not null, category varchar not null, rank integer not null, sequence_id bigint not null, score float not null,
    corpus varchar not null, document_id bigint
);
create table if not exists source_summaries (
    score_run_id varchar not null, corpus varchar not null, source varchar not null, score float not null,
    num_documents bigint not null, num_tokens bigint not null, num_selected_tokens bigint not null
);
create table if not exists domain_summaries (
    score_run_id varchar not null, corpus varchar not null, domain varchar not null, score float not null,
    num_documents bigint not null, num_tokens bigint not null, num_selected_tokens bigint not null
);
create table if not exists length_summaries (
    score_run_id varchar not null, bin integer not null, lowest_tokens bigint not null, highest_tokens bigint not null,
    num_documents bigint not null, mean float not null, q10 float not null, q50 float not null, q90 float not null
);
create table if not exists overlap_summaries (
    a varchar not null, b varchar not null, num_a bigint not null, num_b bigint not null, num_both bigint not null, jaccard double not null
);
"""

# Of the loader itself: the version of the tables, and what was published last. Not compared between stores.
STATE = "create table if not exists state (name varchar primary key, digest varchar not null)"
RECALL_STATE = "select digest from state where name = $name"
REMEMBER_STATE = "insert or replace into state values ($name, $digest)"

LEDGER = "select kind, owner, shard_id, sha256 from loads where owner in ($score_run_id, $sequence_set, $corpus)"
LOADED_SHARDS = "select shard_id, sha256 from loads where kind = $kind and owner = $owner"
FORGET = "delete from loads where kind = $kind and owner = $owner and shard_id = $shard"
REMEMBER = "insert into loads values ($kind, $owner, $shard, $sha256, $num_rows)"

# The content of the store in one number: equal digests mean there is nothing to publish.
DIGEST = """
select md5(coalesce(string_agg(concat_ws('|', kind, owner, shard_id, sha256), ',' order by kind, owner, shard_id), '') || $views)
from loads where not list_has_any(string_split(owner, ' '), $unfinished)
"""


@dataclass(frozen=True)
class Kind:
    """One kind of content: how a shard of it leaves its table and enters it again, and checksums of the rows in both places.

    `insert` reads the verified rows of the shard's file from `shard`, or takes the values of one row; then there is no `file_checksum`.
    `checksums` gives (owner, shard, number of rows, checksum) of everything in the table.
    """

    name: str
    delete: str
    insert: str
    checksums: str
    file_checksum: str = ""


SCORES = Kind(
    "scores",
    "delete from all_scores where score_run_id = $owner and shard_id = $shard",
    "insert into all_scores select $owner, $shard, sequence_id, score from shard",
    "select score_run_id, shard_id, count(*), sum(hash(sequence_id, score)) from all_scores group by all",
    "select count(*), sum(hash(sequence_id, score)) from shard",
)
SELECTIONS = Kind(
    "selections",
    "delete from selections where score_run_id = $owner and shard_id = $shard",
    "insert into selections select $owner, $shard, sequence_id, score from shard",
    "select score_run_id, shard_id, count(*), sum(hash(sequence_id, score)) from selections group by all",
    "select count(*), sum(hash(sequence_id, score)) from shard",
)
INFLUENCES = Kind(
    "influences",
    "delete from influences where score_run_id = $owner",
    "insert into influences select $owner, sequence_id, influence, score from shard",
    "select score_run_id, 0, count(*), sum(hash(sequence_id, influence, score)) from influences group by all",
    "select count(*), sum(hash(sequence_id, influence, score)) from shard",
)
EVALUATIONS = Kind(
    "evaluations",
    "delete from evaluations where score_run_id = $owner",
    "insert into evaluations select $owner, task, metric, value, standard_error, num_examples, step, num_tokens from shard",
    """select score_run_id, 0, count(*), sum(hash(task, metric, value, standard_error, num_examples, step, num_tokens))
       from evaluations group by all""",
    "select count(*), sum(hash(task, metric, value, standard_error, num_examples, step, num_tokens)) from shard",
)
QUESTIONS = Kind(
    "questions",
    "delete from questions where score_run_id = $owner",
    """insert into questions select $owner, task, question, choice, step, log_likelihood, num_bytes, num_characters, is_right, is_greedy
       from shard""",
    """select score_run_id, 0, count(*),
              sum(hash(task, question, choice, step, log_likelihood, num_bytes, num_characters, is_right, is_greedy))
       from questions group by all""",
    """select count(*), sum(hash(task, question, choice, step, log_likelihood, num_bytes, num_characters, is_right, is_greedy))
       from shard""",
)
SPANS = Kind(
    "spans",
    "delete from spans where sequence_set = $owner and shard_id = $shard",
    "insert into spans select $owner, $corpus, $shard, sequence_id, document_id, num_tokens from shard",
    "select sequence_set, shard_id, count(*), sum(hash(sequence_id, document_id, num_tokens)) from spans group by all",
    "select count(*), sum(hash(sequence_id, document_id, num_tokens)) from shard",
)
DOCUMENTS = Kind(
    "documents",
    "delete from documents where corpus = $owner and shard_id = $shard",
    """insert into documents select $owner, $shard, document_id, source, url, domain,
       nullif(regexp_extract(timestamp, '^[0-9]{4}-[0-9]{2}'), ''), num_bytes from shard""",
    "select corpus, shard_id, count(*), sum(hash(document_id, source, url, domain, month, num_bytes)) from documents group by all",
    """select count(*), sum(hash(document_id, source, url, domain, nullif(regexp_extract(timestamp, '^[0-9]{4}-[0-9]{2}'), ''), num_bytes))
       from shard""",
)
SELECTION_COUNTS = Kind(
    "selection_counts",
    "delete from selection_counts where score_run_id = $owner",
    """insert into selection_counts values ($owner, $num_candidates, $num_selected, $threshold, $num_ties_at_threshold, $num_ties_kept,
       $num_tokens)""",
    "select score_run_id, 0, count(*), null from selection_counts group by all",
)
# The row of `score_runs` goes in last and comes out first: a score run without it is not loaded whole and stays out of the snapshot.
SCORE_RUNS = Kind(
    "score_runs",
    "delete from score_runs where score_run_id = $owner",
    """insert into score_runs values ($owner, $kind_of_run, $run, $round, $recipe, $method, $seed, $corpus, $sequence_set,
       $sequences_digest, $selector_fingerprint, $scores_fingerprint, $num_sequences, $finished_at)""",
    "select score_run_id, 0, count(*), null from score_runs group by all",
)
KINDS = {
    kind.name: kind for kind in (SCORES, SELECTIONS, INFLUENCES, EVALUATIONS, QUESTIONS, SPANS, DOCUMENTS, SELECTION_COUNTS, SCORE_RUNS)
}
OF_SCORE_RUN = ("scores", "selections", "selection_counts", "influences", "evaluations", "questions", "score_runs", "summaries")

HELD = "select distinct owner from loads where list_contains($kinds, kind) order by owner"  # with $kinds of score runs, loaded whole or not
UNFINISHED = """
select distinct owner from loads where list_contains($kinds, kind) and owner not in (select score_run_id from score_runs) order by owner
"""
# Everything of one score run; `$owner` is its id. Overlaps have one ledger row a pair, named `a b`: ids hold no spaces.
FORGET_SCORE_RUN = (
    "delete from score_runs where score_run_id = $owner",
    "delete from all_scores where score_run_id = $owner",
    "delete from selections where score_run_id = $owner",
    "delete from selection_counts where score_run_id = $owner",
    "delete from influences where score_run_id = $owner",
    "delete from evaluations where score_run_id = $owner",
    "delete from questions where score_run_id = $owner",
    "delete from run_summaries where score_run_id = $owner",
    "delete from score_histograms where score_run_id = $owner",
    "delete from decile_summaries where score_run_id = $owner",
    "delete from example_sequences where score_run_id = $owner",
    "delete from source_summaries where score_run_id = $owner",
    "delete from domain_summaries where score_run_id = $owner",
    "delete from length_summaries where score_run_id = $owner",
    "delete from overlap_summaries where a = $owner or b = $owner",
    "delete from loads where kind = 'overlaps' and list_contains(string_split(owner, ' '), $owner)",
    "delete from loads where owner = $owner and kind not in ('spans', 'documents')",
)
# Spans and documents of shards that no score run but `$gone` has scored: the rows, then what the ledger says of them.
UNSCORED = """
select owner, shard_id from loads where kind = '{kind}' and (owner, shard_id) not in (
    select r.{owner}, s.shard_id from score_runs r join loads s on s.kind = 'scores' and s.owner = r.score_run_id
    where not list_contains($gone, r.score_run_id))
"""
FORGET_UNSCORED = tuple(
    f"delete from {table} where {condition} ({owner}, shard_id) in ({UNSCORED.format(kind=kind, owner=of)})"  # noqa: S608 - names from below
    for kind, of in (("spans", "sequence_set"), ("documents", "corpus"))
    for table, condition, owner in ((kind, "", of), ("loads", f"kind = '{kind}' and", "owner"))
)
FORGET_SPANS = ("delete from spans where sequence_set = $owner", "delete from loads where kind = 'spans' and owner = $owner")
FORGET_DOCUMENTS = ("delete from documents where corpus = $owner", "delete from loads where kind = 'documents' and owner = $owner")

# What is in the ledger, with the rows it promises; and a checksum of a whole table, to compare two files.
WHOLE_LEDGER = "select kind, owner, shard_id, sha256, num_rows from loads where kind not in ('summaries', 'overlaps') order by all"
ROWS_OF_SUMMARIES = """
select s.score_run_id, sum(s.num_rows) from (
    select score_run_id, count(*) as num_rows from run_summaries group by all
    union all select score_run_id, count(*) from score_histograms group by all
    union all select score_run_id, count(*) from decile_summaries group by all
    union all select score_run_id, count(*) from example_sequences group by all
    union all select score_run_id, count(*) from source_summaries group by all
    union all select score_run_id, count(*) from domain_summaries group by all
    union all select score_run_id, count(*) from length_summaries group by all) s
group by s.score_run_id
"""
LOADED_SUMMARIES = "select owner, num_rows from loads where kind = 'summaries'"
TABLE_NAMES = "select table_name from duckdb_tables() where database_name = $database and table_name <> 'state' order by table_name"
TABLE_CHECKSUM = "select count(*), sum(hash(t)) from {database}.{table} t"

SCORE_RUNS_OF_CORPUS = "select score_run_id, sequence_set, sequences_digest from score_runs where corpus = $corpus order by score_run_id"
