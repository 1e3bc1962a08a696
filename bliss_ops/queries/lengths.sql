-- How do scores depend on the length of the document?
-- parameter score_run (score run) = newest: whose scores
select lowest_tokens, highest_tokens, num_documents, mean, q10, q50, q90
from length_summaries
where score_run_id = $score_run
order by lowest_tokens
