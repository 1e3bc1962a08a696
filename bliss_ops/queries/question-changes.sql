-- Which questions does one target answer right and another wrong?
-- parameter a (score run) = newest: the round of the one
-- parameter b (score run) = previous: the round of the other
-- parameter task (text) = all: one task, or all
-- parameter limit (integer) = 20: rows at most
select a.task, a.question, a.is_right as is_right_a, b.is_right as is_right_b, a.log_likelihood as log_likelihood_a,
       b.log_likelihood as log_likelihood_b, a.log_likelihood - b.log_likelihood as difference
from answers a join answers b on b.task = a.task and b.question = a.question
where a.score_run_id = $a and b.score_run_id = $b and a.is_final and b.is_final and a.is_right <> b.is_right
      and ($task = 'all' or a.task = $task)
order by abs(difference) desc, a.task, a.question
limit $limit
