import http.client, os, random, re, sys, time

draw = random.Random(int(sys.argv[1]))
rate = int(sys.argv[2])
while not os.path.exists("port"):
    time.sleep(0.05)
port = int(open("port").read())


def get(path):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


folders = ["/"]
while True:
    try:
        found = re.findall(r'href="([^"?]+)"', get(draw.choice(folders)).decode(errors="replace"))
        for name in draw.sample(found, min(4, len(found))):
            get("/" + name)
            time.sleep(draw.expovariate(rate))
    except OSError:
        time.sleep(0.1)
