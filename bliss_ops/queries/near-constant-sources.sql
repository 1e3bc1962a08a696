-- In which sources do all sequences get about the same score, so that the order inside them means nothing?
-- parameter score_run (score run) = newest: whose scores
-- parameter most_spread (number) = 0.1: list sources whose spread is below this share of the spread of all scores
with run as (select corpus, sequence_set from score_runs where score_run_id = $score_run),
     labels as (select document_id, source from documents where corpus = (select corpus from run)),
     pools as (select l.source, count(*) as num_pieces, avg(s.score) as mean, stddev_pop(s.score) as standard_deviation
               from all_scores s join spans p on p.sequence_set = (select sequence_set from run) and p.sequence_id = s.sequence_id
               join labels l on l.document_id = p.document_id
               where s.score_run_id = $score_run group by l.source)
select p.source, p.num_pieces, p.mean, p.standard_deviation, p.standard_deviation / nullif(m.standard_deviation, 0) as share_of_spread
from pools p cross join (select standard_deviation from run_summaries where score_run_id = $score_run) m
where p.num_pieces > 1 and coalesce(share_of_spread, 0) < $most_spread
order by share_of_spread, p.source
