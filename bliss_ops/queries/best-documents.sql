-- Which documents of a domain are best?
-- parameter domain (text): the domain, as `--query domains` writes it
-- parameter score_run (score run) = newest: whose scores
-- parameter min_tokens (integer) = 0: leave out documents with fewer tokens
-- parameter limit (integer) = 20: rows at most
with run as (select corpus, sequence_set from score_runs where score_run_id = $score_run),
     chosen as (select document_id, url from documents where corpus = (select corpus from run) and domain = $domain),
     pieces as (select p.sequence_id, p.document_id, p.num_tokens, c.url
                from spans p join chosen c using (document_id) where p.sequence_set = (select sequence_set from run))
select p.document_id, sum(s.score * p.num_tokens) / sum(p.num_tokens) as score, sum(p.num_tokens)::bigint as num_tokens,
       any_value(p.url) as url
from all_scores s join pieces p using (sequence_id)
where s.score_run_id = $score_run
group by p.document_id having sum(p.num_tokens) >= $min_tokens
order by score desc, p.document_id
limit $limit
