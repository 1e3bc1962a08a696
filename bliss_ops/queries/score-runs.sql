-- What score runs are at hand, how are their scores spread, and what was selected?
select r.score_run_id, r.kind, r.method, r.corpus, r.num_sequences, s.mean, s.standard_deviation, s.minimum, s.maximum, s.threshold,
       s.num_selected, r.finished_at
from score_runs r left join run_summaries s using (score_run_id)
order by r.corpus, r.finished_at, r.score_run_id
