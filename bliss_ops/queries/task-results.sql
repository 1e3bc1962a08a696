-- What did each target reach on the zero-shot tasks, model by model?
-- parameter metric (text) = accuracy: accuracy, accuracy_norm, bits_per_byte, log_likelihood or (LAMBADA) perplexity
-- parameter task (text) = all: one task, or all
select e.task, r.recipe, r.corpus, r.method, r.seed, r.round, e.step, e.num_tokens, e.value, e.standard_error, e.num_examples, r.run
from evaluations e join score_runs r using (score_run_id)
where e.metric = $metric and ($task = 'all' or e.task = $task)
order by e.task, r.recipe, r.corpus, r.round, e.step, e.value desc, r.run
