import json, random, sys

text = open(sys.argv[1], errors="replace").read(2_000_000)
draw = random.Random(int(sys.argv[2]))
words = text.split()
while True:
    rows = [{"name": draw.choice(words), "at": draw.random(), "tags": draw.sample(words, 5)} for _ in range(2000)]
    back = json.loads(json.dumps(rows))
    back.sort(key=lambda row: row["name"])
