-- How far do all score runs of the same sequences agree (rank correlation on a sample)?
-- parameter score_run (score run) = newest: the score runs of its sequences are compared
-- parameter sample (integer) = 20000: about so many sequences
with runs as (select r.score_run_id from score_runs r
              where r.sequence_set = (select sequence_set from score_runs where score_run_id = $score_run)),
     rate as (select greatest(1, max(num_sequences) // $sample)::ubigint as one_of from score_runs where score_run_id in (from runs)),
     sampled as materialized (select s.score_run_id, s.sequence_id, s.score from all_scores s
                 where s.score_run_id in (from runs) and hash(s.sequence_id) % (select one_of from rate) = 0),
     pairs as (select x.score_run_id as a, y.score_run_id as b, x.score as score_a, y.score as score_b
               from sampled x join sampled y on y.sequence_id = x.sequence_id and x.score_run_id < y.score_run_id),
     ranks as (select a, b, rank() over (partition by a, b order by score_a) + (count(*) over (partition by a, b, score_a) - 1) / 2 as rank_a,
                      rank() over (partition by a, b order by score_b) + (count(*) over (partition by a, b, score_b) - 1) / 2 as rank_b
               from pairs)
select a, b, case when count(distinct rank_a) > 1 and count(distinct rank_b) > 1 then corr(rank_a, rank_b) end as spearman,
       count(*) as num_sequences
from ranks
group by a, b
order by spearman desc nulls last, a, b
