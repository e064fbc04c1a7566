"""What runs inside a worker process: the only room that imports torch. It never sees the database.

The data's way is a straight line (`engine`): sampler → uint8 batches → one pass through each needed network (`networks`)
→ accumulators (`metrics`) → scores. `worker` is the process around it. Nothing here is imported by the daemon.
"""
