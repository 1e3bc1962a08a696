-- On which sequences do two score runs disagree most, in standard deviations of each?
-- parameter a (score run) = newest: one score run
-- parameter b (score run) = previous: the other
-- parameter sample (integer) = 1000000: look at about so many sequences, chosen by a hash of the id
-- parameter limit (integer) = 20: rows at most
with rate as (select greatest(1, num_sequences // $sample)::ubigint as one_of from score_runs where score_run_id = $a),
     x as (select s.sequence_id, s.score, (s.score - m.mean) / nullif(m.standard_deviation, 0) as deviations
           from all_scores s join run_summaries m using (score_run_id)
           where s.score_run_id = $a and hash(s.sequence_id) % (select one_of from rate) = 0),
     y as (select s.sequence_id, s.score, (s.score - m.mean) / nullif(m.standard_deviation, 0) as deviations
           from all_scores s join run_summaries m using (score_run_id)
           where s.score_run_id = $b and hash(s.sequence_id) % (select one_of from rate) = 0),
     farthest as (select sequence_id, x.score as score_a, y.score as score_b, x.deviations as deviations_a, y.deviations as deviations_b,
                         x.deviations - y.deviations as difference
                  from x join y using (sequence_id)
                  where difference is not null order by abs(difference) desc, sequence_id limit $limit),
     pieces as (select p.sequence_id, arg_max(p.document_id, p.num_tokens) as document_id
                from spans p
                where p.sequence_set = (select sequence_set from score_runs where score_run_id = $a)
                  and p.sequence_id in (select sequence_id from farthest)
                group by p.sequence_id)
select f.sequence_id, f.score_a, f.score_b, f.deviations_a, f.deviations_b, f.difference, d.source, d.domain, d.url
from farthest f left join pieces p using (sequence_id)
left join documents d on d.corpus = (select corpus from score_runs where score_run_id = $a) and d.document_id = p.document_id
order by abs(f.difference) desc, f.sequence_id
