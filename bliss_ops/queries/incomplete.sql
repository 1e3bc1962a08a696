-- Which score runs are incomplete, and what do they lack?
with scored as (select owner as score_run_id, count(*) as num_shards from loads where kind = 'scores' group by owner),
     available as (select owner as sequence_set, count(*) as num_shards from loads where kind = 'spans' group by owner),
     facts as (select r.score_run_id, r.kind, r.corpus, coalesce(s.num_shards, 0) as num_shards_scored,
                      coalesce(a.num_shards, 0) as num_shards_known, r.finished_at,
                      exists (from selection_counts c where c.score_run_id = r.score_run_id) as is_selected,
                      exists (from evaluations e where e.score_run_id = r.score_run_id) as is_evaluated
               from score_runs r left join scored s using (score_run_id) left join available a using (sequence_set))
select score_run_id, kind, corpus, num_shards_scored, num_shards_known, is_selected, is_evaluated,
       concat_ws(', ', if(num_shards_scored < num_shards_known, 'scores of other shards', null),
                 if(kind = 'round' and not is_selected, 'selection', null), if(kind = 'round' and not is_evaluated, 'evaluation', null)) as lacks
from facts
where lacks <> ''
order by corpus, finished_at, score_run_id
