-- What did the trained targets reach, and how far is each from random selection with the same seed?
-- parameter task (text) = validation: the evaluation task
-- parameter metric (text) = loss: the metric
with found as (select r.recipe, r.corpus, r.run, r.round, r.method, r.seed, e.value, e.standard_error, e.num_examples
               from final_evaluations e join score_runs r using (score_run_id)
               where r.kind = 'round' and e.task = $task and e.metric = $metric)
select f.recipe, f.corpus, f.round, f.method, f.seed, f.value, f.standard_error, f.value - b.value as difference_from_random, f.num_examples, f.run
from found f
left join (select recipe, corpus, round, seed, min(value) as value from found where method = 'random' group by all) b
       on b.recipe = f.recipe and b.corpus = f.corpus and b.round = f.round and b.seed = f.seed
order by f.recipe, f.corpus, f.round, f.value, f.run
