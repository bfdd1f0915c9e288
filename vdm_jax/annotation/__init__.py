"""Control maps of videos: edges, poses, depth, optical flow and strokes, one file per kind."""
