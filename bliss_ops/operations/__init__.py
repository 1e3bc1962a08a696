"""Day-two work on a lake and its servers, started by a person or a timer and never by the pipeline.

doctor, findings, checks_*   what is wrong, and the fix beside it
retention, collecting        what may go of finished work, and taking it out
remaking                     bringing back what was taken out, byte for byte
backup, restoring            copies of the lake and of Airflow's metadata, and the way back
files                        listing and deleting below one directory, and never outside of it
"""
