def check(answer): return "not solved yet"
