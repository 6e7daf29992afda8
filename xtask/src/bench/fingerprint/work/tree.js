let state = Number(process.argv[2]) || 1;
const draw = () => (state = (state * 48271) % 2147483647);
for (;;) {
  const words = new Map();
  for (let i = 0; i < 50000; i += 1) {
    const key = draw().toString(36).slice(0, 4);
    words.set(key, (words.get(key) ?? "") + key);
  }
  JSON.parse(JSON.stringify([...words].sort()));
}
