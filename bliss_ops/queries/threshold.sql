-- What does the threshold look like: which sequences are just above and just below it, by what margin, and how many are tied?
-- parameter score_run (score run) = newest: a round with a selection
-- parameter limit (integer) = 10: sequences on either side
with cut as (select c.threshold, c.num_ties_at_threshold, c.num_ties_kept, s.standard_deviation
             from selection_counts c join run_summaries s using (score_run_id) where c.score_run_id = $score_run),
     above as (select sequence_id, score from all_scores
               where score_run_id = $score_run and score >= (select threshold from cut) order by score, sequence_id desc limit $limit),
     below as (select sequence_id, score from all_scores
               where score_run_id = $score_run and score < (select threshold from cut) order by score desc, sequence_id limit $limit),
     around as (select * from above union all select * from below)
select a.sequence_id, a.score, k.sequence_id is not null as is_selected, a.score - c.threshold as margin,
       margin / nullif(c.standard_deviation, 0) as margin_in_deviations, c.threshold, c.num_ties_at_threshold, c.num_ties_kept
from around a cross join cut c
left join (select sequence_id from selections where score_run_id = $score_run and sequence_id in (select sequence_id from around)) k
       on k.sequence_id = a.sequence_id
order by a.score desc, a.sequence_id
