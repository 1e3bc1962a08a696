-- From which sources does one selection take more than another?
-- parameter a (score run) = newest: one selection
-- parameter b (score run) = previous: the other
with shares as (select score_run_id, source, num_tokens, num_selected_tokens,
                       num_selected_tokens / nullif(sum(num_selected_tokens) over (partition by score_run_id), 0) as share_of_selection
                from source_summaries where score_run_id in ($a, $b))
select source, coalesce(x.num_tokens, y.num_tokens) as num_tokens, x.num_selected_tokens as num_selected_tokens_a,
       y.num_selected_tokens as num_selected_tokens_b, x.share_of_selection as share_a, y.share_of_selection as share_b,
       coalesce(x.share_of_selection, 0) - coalesce(y.share_of_selection, 0) as difference
from (from shares where score_run_id = $a) x full join (from shares where score_run_id = $b) y using (source)
order by abs(difference) desc, source
