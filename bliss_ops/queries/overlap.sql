-- How much do two selections share, and how much would two random ones?
-- parameter a (score run) = newest: one selection
-- parameter b (score run) = previous: the other
with pair as (select * from overlap_summaries where a = least($a, $b) and b = greatest($a, $b))
select $a as a, $b as b, if(a = $a, num_a, num_b) as num_a, if(a = $a, num_b, num_a) as num_b, num_both, jaccard,
       num_both / num_a as share_of_a, num_both / num_b as share_of_b,
       num_a / (select num_candidates from selection_counts where score_run_id = $a) as share_of_b_if_random
from pair
order by 1, 2
