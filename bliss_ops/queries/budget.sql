-- Which score would be the threshold for a budget of tokens?
-- parameter tokens (integer): the budget
-- parameter score_run (score run) = newest: whose scores
with run as (select r.score_run_id, r.num_sequences, regexp_extract(r.sequence_set, '([0-9]+)$', 1)::bigint as sequence_length
             from score_runs r where r.score_run_id = $score_run),
     wanted as (select least($tokens // sequence_length, num_sequences) as keep, sequence_length, num_sequences from run),
     bins as (select bin, lowest, highest, sum(num_sequences) over (order by bin desc) as from_top, count(*) over () as num_bins
              from score_histograms where score_run_id = $score_run),
     near as (select coalesce(max(bin), 0) as bin from bins where from_top >= (select keep from wanted)),
     bounds as (select coalesce((select lowest from bins where bin = n.bin - 1 and bin > 0), '-infinity'::double) as low,
                       coalesce((select highest from bins where bin = n.bin + 1 and bin < num_bins - 1), 'infinity'::double) as high
                from near n),
     above as (select count(*) as num_above from all_scores, bounds where score_run_id = $score_run and score > high),
     ranked as (select score, num_above + row_number() over (order by score desc) as place
                from all_scores, bounds, above where score_run_id = $score_run and score > low and score <= high)
select $tokens as tokens, w.keep as num_sequences, w.keep * w.sequence_length as num_tokens, w.keep / w.num_sequences as share,
       r.score as threshold
from wanted w join ranked r on r.place = w.keep
order by place
