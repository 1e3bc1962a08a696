-- Which domains are most helpful?
-- parameter score_run (score run) = newest: whose scores
-- parameter min_tokens (integer) = 1000: leave out domains with fewer tokens
-- parameter limit (integer) = 20: rows at most
select domain, score, num_documents, num_tokens, num_selected_tokens, num_selected_tokens / num_tokens as share_selected
from domain_summaries
where score_run_id = $score_run and num_tokens >= $min_tokens
order by score desc, domain
limit $limit
