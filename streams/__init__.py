"""What happens when an event arrives: codec, pipeline, worker, publishing, replay."""
