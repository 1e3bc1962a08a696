-- How do the scores of a corpus change from month to month of its documents' timestamps?
-- parameter score_run (score run) = newest: whose scores
with run as (select corpus, sequence_set from score_runs where score_run_id = $score_run),
     dated as (select document_id, month from documents
               where corpus = (select corpus from run)
                 and shard_id in (select shard_id from loads where kind = 'scores' and owner = $score_run)),
     pieces as (select d.month, p.num_tokens, s.score, k.sequence_id is not null as is_selected
                from all_scores s
                join spans p on p.sequence_set = (select sequence_set from run) and p.sequence_id = s.sequence_id
                join dated d on d.document_id = p.document_id
                left join (select sequence_id from selections where score_run_id = $score_run) k on k.sequence_id = s.sequence_id
                where s.score_run_id = $score_run),
     means as (select month, sum(score * num_tokens) / sum(num_tokens) as score, sum(num_tokens)::bigint as num_tokens,
                      coalesce(sum(num_tokens) filter (where is_selected), 0) / sum(num_tokens) as share_selected
               from pieces group by month)
select m.month, m.score, m.score - lag(m.score) over (order by m.month nulls last) as change, c.num_documents, m.num_tokens, m.share_selected
from means m join (select month, count(*) as num_documents from dated group by month) c on c.month is not distinct from m.month
order by m.month nulls last
