"""Tables and views of the score store, one statement per constant; docs/store.md shows what to ask them.

Tables hold what Parquet holds, nothing more, so the file can always be rebuilt. A *score run* is one round of one run and is
named like its directory, `demo-bliss-s0/round-01`. Sequence ids are unique within a *sequence set* (corpus, tokenizer, length),
document ids within a corpus. `all_scores` keeps every score ever loaded; the view `scores` is what people mean by "the scores":
one row per sequence, the newest by a method that reads the text. The newest is decided per shard, on a table of a few
hundred rows, because a window function over fifty million scores would cost seconds in every query.
"""

from dataclasses import dataclass

TABLES = """
create table if not exists loads (
    kind varchar not null, owner varchar not null, shard_id integer not null, sha256 varchar not null, num_rows bigint not null,
    primary key (kind, owner, shard_id)
);
create table if not exists score_runs (
    score_run_id varchar not null, run varchar not null, round integer not null, recipe varchar not null,
    method varchar not null, seed bigint not null, corpus varchar not null, sequence_set varchar not null,
    selector_fingerprint varchar not null, scores_fingerprint varchar not null, num_sequences bigint not null,
    finished_at timestamp not null
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
    standard_error double, num_examples bigint not null
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
    num_bytes bigint not null
);
"""

STATE = "create table if not exists state (name varchar primary key, digest varchar not null)"

VIEWS = """
create or replace view latest_shards as
    select score_run_id, sequence_set, corpus, method, shard_id, row_number() over newest_first = 1 as newest_of_method,
           row_number() over newest_read = 1 and method <> 'random' as newest
    from (select loads.owner as score_run_id, loads.shard_id, r.sequence_set, r.corpus, r.method, r.finished_at
          from loads join score_runs r on r.score_run_id = loads.owner where loads.kind = 'scores')
    window newest_first as (partition by sequence_set, shard_id, method order by finished_at desc, score_run_id desc),
           newest_read as (partition by sequence_set, shard_id order by method = 'random', finished_at desc, score_run_id desc);

create or replace view scores as
    select s.score_run_id, l.sequence_set, s.sequence_id, s.shard_id, s.score
    from all_scores s join latest_shards l on l.score_run_id = s.score_run_id and l.shard_id = s.shard_id
    where l.newest;

create or replace view latest_scores as
    select s.score_run_id, l.method, l.sequence_set, s.sequence_id, s.shard_id, s.score
    from all_scores s join latest_shards l on l.score_run_id = s.score_run_id and l.shard_id = s.shard_id
    where l.newest_of_method;

create or replace view sequence_documents as
    select p.sequence_set, p.shard_id, p.sequence_id, p.document_id, p.num_tokens, p.corpus, d.source, d.domain, d.url, d.num_bytes
    from spans p join documents d on d.corpus = p.corpus and d.document_id = p.document_id;

create or replace view document_scores as
    select s.score_run_id, d.corpus, d.document_id, sum(s.score * d.num_tokens) / sum(d.num_tokens) as score,
           sum(d.num_tokens) as num_tokens, count(*) as num_sequences, any_value(d.source) as source,
           any_value(d.domain) as domain, any_value(d.url) as url
    from scores s join sequence_documents d on d.sequence_set = s.sequence_set and d.sequence_id = s.sequence_id
    group by s.score_run_id, d.corpus, d.document_id;

create or replace view domain_scores as
    select score_run_id, corpus, domain, sum(score * num_tokens) / sum(num_tokens) as score, count(*) as num_documents,
           sum(num_tokens) as num_tokens
    from document_scores group by score_run_id, corpus, domain;

create or replace view source_scores as
    select score_run_id, corpus, source, sum(score * num_tokens) / sum(num_tokens) as score, count(*) as num_documents,
           sum(num_tokens) as num_tokens
    from document_scores group by score_run_id, corpus, source;

create or replace view score_deciles as
    select score_run_id, decile, min(score) as lowest, max(score) as highest, avg(score) as mean, count(*) as num_sequences
    from (select score_run_id, score, ntile(10) over (partition by score_run_id order by score desc, sequence_id) as decile from scores)
    group by score_run_id, decile;

create or replace view rounds as
    select r.run, r.round, r.method, r.seed, r.recipe, r.corpus, r.num_sequences, n.num_selected, n.threshold,
           n.num_tokens as num_selected_tokens, e.loss as validation_loss, e.perplexity, r.finished_at as scored_at, r.score_run_id
    from score_runs r left join selection_counts n using (score_run_id)
    left join (select score_run_id, max(value) filter (where metric = 'loss') as loss,
                      max(value) filter (where metric = 'perplexity') as perplexity
               from evaluations where task = 'validation' group by score_run_id) e using (score_run_id);

create or replace view score_fidelity as
    with sources as (select sequence_set, sequence_id, arg_max(source, num_tokens) as source
                     from (select sequence_set, sequence_id, source, sum(num_tokens) as num_tokens from sequence_documents
                           where sequence_id in (select sequence_id from influences) group by all) group by all),
         probes as (select i.score_run_id, o.source, i.score, i.influence
                    from influences i join score_runs r using (score_run_id)
                    left join sources o on o.sequence_set = r.sequence_set and o.sequence_id = i.sequence_id),
         pools as (select *, false as is_overall from probes
                   union all select score_run_id, null as source, score, influence, true as is_overall from probes),
         -- ties share the mean of their ranks
         ranks as (select score_run_id, source, is_overall,
                          rank() over (pool order by score) + (count(*) over (pool_score) - 1) / 2 as score_rank,
                          rank() over (pool order by influence) + (count(*) over (pool_influence) - 1) / 2 as influence_rank
                   from pools
                   window pool as (partition by score_run_id, is_overall, source),
                          pool_score as (partition by score_run_id, is_overall, source, score),
                          pool_influence as (partition by score_run_id, is_overall, source, influence))
    select r.run, r.round, r.method, case when is_overall then 'all' else coalesce(source, 'unknown') end as source, is_overall,
           count(*) as num_probes,
           case when count(distinct score_rank) > 1 and count(distinct influence_rank) > 1 then corr(score_rank, influence_rank) end
               as spearman,
           score_run_id
    from ranks join score_runs r using (score_run_id) group by all;

create or replace view selection_overlap as
    with sizes as (select r.score_run_id, r.sequence_set, r.round, n.num_selected
                   from score_runs r join selection_counts n using (score_run_id)),
         pairs as (select a.score_run_id as a, b.score_run_id as b, a.sequence_set, a.num_selected as num_a, b.num_selected as num_b
                   from sizes a join sizes b on a.sequence_set = b.sequence_set and a.round = b.round and a.score_run_id < b.score_run_id),
         shared as (select x.score_run_id as a, y.score_run_id as b, count(*) as num_both
                    from selections x join selections y on x.sequence_id = y.sequence_id and x.score_run_id < y.score_run_id group by 1, 2)
    select p.a, p.b, p.num_a, p.num_b, coalesce(s.num_both, 0) as num_both,
           coalesce(s.num_both, 0) / (p.num_a + p.num_b - coalesce(s.num_both, 0)) as jaccard
    from pairs p left join shared s on s.a = p.a and s.b = p.b;
"""

# The content of the store in one number: equal digests mean there is nothing to publish.
DIGEST = """
select md5(coalesce(string_agg(concat_ws('|', kind, owner, shard_id, sha256), ',' order by kind, owner, shard_id), '') || $views) from loads
"""
DROP_TABLES = """
drop table if exists loads; drop table if exists score_runs; drop table if exists all_scores; drop table if exists selections;
drop table if exists selection_counts; drop table if exists influences; drop table if exists evaluations; drop table if exists spans;
drop table if exists documents;
delete from state;
"""
LOADED_SHARDS = "select shard_id from loads where kind = $kind and owner = $owner"
LOADED = "select sha256 from loads where kind = $kind and owner = $owner and shard_id = $shard"
FORGET = "delete from loads where kind = $kind and owner = $owner and shard_id = $shard"
REMEMBER = "insert into loads values ($kind, $owner, $shard, $sha256, $num_rows)"
RECALL_STATE = "select digest from state where name = $name"
REMEMBER_STATE = "insert or replace into state values ($name, $digest)"


@dataclass(frozen=True)
class Kind:
    """One kind of load: how a shard of it leaves its table and enters it again."""

    name: str
    delete: str
    insert: str


SCORES = Kind(
    "scores",
    "delete from all_scores where score_run_id = $owner and shard_id = $shard",
    "insert into all_scores select $owner, $shard, sequence_id, score from read_parquet($file)",
)
SELECTIONS = Kind(
    "selections",
    "delete from selections where score_run_id = $owner and shard_id = $shard",
    "insert into selections select $owner, $shard, sequence_id, score from read_parquet($file)",
)
INFLUENCES = Kind(
    "influences",
    "delete from influences where score_run_id = $owner",
    "insert into influences select $owner, sequence_id, influence, score from read_parquet($file)",
)
EVALUATIONS = Kind(
    "evaluations",
    "delete from evaluations where score_run_id = $owner",
    "insert into evaluations select $owner, task, metric, value, standard_error, num_examples from read_parquet($file)",
)
SPANS = Kind(
    "spans",
    "delete from spans where sequence_set = $owner and shard_id = $shard",
    "insert into spans select $owner, $corpus, $shard, sequence_id, document_id, num_tokens from read_parquet($file)",
)
DOCUMENTS = Kind(
    "documents",
    "delete from documents where corpus = $owner and shard_id = $shard",
    "insert into documents select $owner, $shard, document_id, source, url, domain, num_bytes from read_parquet($file)",
)
SCORE_RUNS = Kind(
    "score_runs",
    "delete from score_runs where score_run_id = $owner",
    """insert into score_runs values ($owner, $run, $round, $recipe, $method, $seed, $corpus, $sequence_set,
       $selector_fingerprint, $scores_fingerprint, $num_sequences, $finished_at)""",
)
SELECTION_COUNTS = Kind(
    "selection_counts",
    "delete from selection_counts where score_run_id = $owner",
    """insert into selection_counts values ($owner, $num_candidates, $num_selected, $threshold, $num_ties_at_threshold, $num_ties_kept,
       $num_tokens)""",
)
