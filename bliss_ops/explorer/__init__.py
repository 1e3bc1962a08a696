"""Pages over the published score store, for people: in the Airflow UI (`airflow/plugin.py`) and alone (`bliss explore`).

`app.py` has the routes, `facts.py` what they ask of the snapshot, `figures.py` what they draw, `templates/` how it reads. `guard.py` stands
before every route, static files and 404s included. `console.py` runs people's own SQL in a process of its own, which can be ended.
"""
