import sys

limit = 200_000 + 1000 * int(sys.argv[1])
while True:
    is_prime = bytearray([1]) * limit
    for n in range(2, int(limit**0.5) + 1):
        if is_prime[n]:
            for multiple in range(n * n, limit, n):
                is_prime[multiple] = 0
