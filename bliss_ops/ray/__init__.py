"""Ray's side of the pipeline: shards over actors, stages as jobs. Only this package imports ray."""
