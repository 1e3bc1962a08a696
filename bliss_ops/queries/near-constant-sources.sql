-- In which sources do all sequences get about the same score, so that the order inside them means nothing?
-- parameter score_run (score run) = newest: whose scores
-- parameter sample (integer) = 1000000: look at about so many sequences, chosen by a hash of the id
-- parameter most_spread (number) = 0.1: list sources whose spread is below this share of the spread of all scores
with run as (select corpus, sequence_set, greatest(1, num_sequences // $sample)::ubigint as one_of
             from score_runs where score_run_id = $score_run),
     sampled as materialized (select sequence_id, score from all_scores
                              where score_run_id = $score_run and hash(sequence_id) % (select one_of from run) = 0),
     pieces as materialized (select p.document_id, s.score from spans p join sampled s using (sequence_id)
                             where p.sequence_set = (select sequence_set from run)),
     pools as (select d.source, count(*) as num_pieces, avg(p.score) as mean, stddev_pop(p.score) as standard_deviation
               from documents d join pieces p using (document_id) where d.corpus = (select corpus from run) group by d.source)
select p.source, p.num_pieces, p.mean, p.standard_deviation, p.standard_deviation / nullif(m.standard_deviation, 0) as share_of_spread
from pools p cross join (select standard_deviation from run_summaries where score_run_id = $score_run) m
where p.num_pieces > 1 and coalesce(share_of_spread, 0) < $most_spread
order by share_of_spread, p.source
