-- How do the scores of a corpus change from month to month of its documents' timestamps?
-- parameter score_run (score run) = newest: whose scores
-- parameter sample (integer) = 1000000: look at about so many sequences, chosen by a hash of the id
with run as (select corpus, sequence_set, greatest(1, num_sequences // $sample)::ubigint as one_of
             from score_runs where score_run_id = $score_run),
     dated as (select document_id, month from documents
               where corpus = (select corpus from run)
                 and shard_id in (select shard_id from loads where kind = 'scores' and owner = $score_run)),
     sampled as materialized (select sequence_id, score from all_scores
                              where score_run_id = $score_run and hash(sequence_id) % (select one_of from run) = 0),
     chosen as (select sequence_id from selections
                where score_run_id = $score_run and hash(sequence_id) % (select one_of from run) = 0),
     marked as materialized (select s.sequence_id, s.score, k.sequence_id is not null as is_selected
                             from sampled s left join chosen k using (sequence_id)),
     pieces as materialized (select p.document_id, p.num_tokens, s.score, s.is_selected from spans p join marked s using (sequence_id)
                             where p.sequence_set = (select sequence_set from run)),
     months as (select d.month, p.num_tokens, p.score, p.is_selected from dated d join pieces p using (document_id)),
     means as (select month, sum(score * num_tokens) / sum(num_tokens) as score, sum(num_tokens) as num_tokens,
                      coalesce(sum(num_tokens) filter (where is_selected), 0) / sum(num_tokens) as share_selected
               from months group by month)
select m.month, m.score, m.score - lag(m.score) over (order by m.month nulls last) as change, c.num_documents,
       m.num_tokens / sum(m.num_tokens) over () as share_of_tokens, m.share_selected
from means m join (select month, count(*) as num_documents from dated group by month) c on c.month is not distinct from m.month
order by m.month nulls last
