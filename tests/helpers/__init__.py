"""What several tests share: networks that trace in a moment, data of known statistics, pictures, runs, processes."""
