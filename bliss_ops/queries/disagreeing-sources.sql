-- Which sources do two score runs place differently, in standard deviations of each and in what they select?
-- parameter a (score run) = newest: one score run
-- parameter b (score run) = previous: the other
select x.source, x.num_tokens, (x.score - m.mean) / nullif(m.standard_deviation, 0) as deviations_a,
       (y.score - n.mean) / nullif(n.standard_deviation, 0) as deviations_b, deviations_a - deviations_b as difference,
       x.num_selected_tokens / x.num_tokens as share_selected_a, y.num_selected_tokens / y.num_tokens as share_selected_b
from source_summaries x join source_summaries y on y.corpus = x.corpus and y.source = x.source
join run_summaries m on m.score_run_id = x.score_run_id join run_summaries n on n.score_run_id = y.score_run_id
where x.score_run_id = $a and y.score_run_id = $b
order by abs(difference) desc nulls last, x.source
