"""Views of the score store: what people ask for, on top of the tables.

`all_scores` keeps every score ever loaded; the view `scores` is what people mean by "the scores": one row per sequence, the newest by a
method that reads the text, imported scores left out. The newest is decided per shard, on a table of a few hundred rows, because a
window function over fifty million scores would cost seconds in every query.
"""

VIEWS = """
-- A round is never older than the rounds before it, whatever the clock of the machine that scored it said.
create or replace view ordered_score_runs as
    select *, case when kind = 'round' then max(finished_at) over (partition by kind, run order by round) else finished_at end as known_at
    from score_runs;

create or replace view latest_shards as
    select score_run_id, sequence_set, corpus, method, shard_id, row_number() over newest_first = 1 as newest_of_method,
           row_number() over newest_read = 1 and method <> 'random' as newest
    from (select loads.owner as score_run_id, loads.shard_id, r.sequence_set, r.corpus, r.method, r.round, r.known_at
          from loads join ordered_score_runs r on r.score_run_id = loads.owner where loads.kind = 'scores' and r.kind <> 'imported')
    window newest_first as (partition by sequence_set, shard_id, method order by known_at desc, round desc, score_run_id desc),
           newest_read as (partition by sequence_set, shard_id
                           order by method = 'random', known_at desc, round desc, score_run_id desc);

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
    select score_run_id, decile, lowest, highest, mean, num_sequences from decile_summaries;

-- Of the model a round ends with, not of those in the middle.
create or replace view final_evaluations as
    select * from evaluations qualify step is not distinct from max(step) over (partition by score_run_id);

-- One row per question: a task without choices is answered right where the model would have written the right text.
create or replace view answers as
    select q.score_run_id, q.task, q.step, q.question, count(*) as num_choices,
           case when count(*) = 1 then bool_or(q.is_greedy) else first(q.is_right order by q.log_likelihood desc, q.choice) end as is_right,
           max(q.log_likelihood) filter (where q.is_right) as log_likelihood, max(q.num_bytes) filter (where q.is_right) as num_bytes,
           q.step = m.last_step as is_final
    from questions q join (select score_run_id, max(step) as last_step from questions group by score_run_id) m using (score_run_id)
    group by q.score_run_id, q.task, q.step, q.question, m.last_step;

create or replace view rounds as
    select r.run, r.round, r.method, r.seed, r.recipe, r.corpus, r.num_sequences, n.num_selected, n.threshold,
           n.num_tokens as num_selected_tokens, e.loss as validation_loss, e.perplexity, r.finished_at as scored_at, r.score_run_id
    from score_runs r left join selection_counts n using (score_run_id)
    left join (select score_run_id, max(value) filter (where metric = 'loss') as loss,
                      max(value) filter (where metric = 'perplexity') as perplexity
               from final_evaluations where task = 'validation' group by score_run_id) e using (score_run_id)
    where r.kind = 'round';

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
    select o.a, o.b, o.num_a, o.num_b, o.num_both, o.jaccard
    from overlap_summaries o join score_runs x on x.score_run_id = o.a join score_runs y on y.score_run_id = o.b
    where x.round = y.round;
"""
