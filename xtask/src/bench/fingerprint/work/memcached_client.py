import os, random, socket, sys, time

draw = random.Random(int(sys.argv[1]))
while not os.path.exists("m"):
    time.sleep(0.05)
server = socket.socket(socket.AF_UNIX)
server.connect("m")
answers = server.makefile("rb")
while True:
    key = "k%d" % draw.randrange(5000)
    if draw.random() < 0.2:
        value = b"v" * draw.randrange(20, 2000)
        server.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key.encode(), len(value), value))
        answers.readline()
    else:
        server.sendall(b"get %s\r\n" % key.encode())
        while (line := answers.readline()) and line != b"END\r\n":
            pass
