"""From manifests of videos to batches: decoding, patches, chats and the Grain pipeline."""
