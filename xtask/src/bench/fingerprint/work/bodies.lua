math.randomseed(tonumber(arg[1]))
local bodies = {}
for i = 1, 40 do
  bodies[i] = { x = math.random(), y = math.random(), u = 0.0, v = 0.0, m = math.random() }
end
while true do
  for i, a in ipairs(bodies) do
    for j = i + 1, #bodies do
      local b = bodies[j]
      local dx, dy = a.x - b.x, a.y - b.y
      local d = dx * dx + dy * dy + 0.01
      local f = 0.0001 / (d * math.sqrt(d))
      a.u, a.v = a.u - dx * b.m * f, a.v - dy * b.m * f
      b.u, b.v = b.u + dx * a.m * f, b.v + dy * a.m * f
    end
  end
  for _, a in ipairs(bodies) do
    a.x, a.y = a.x + a.u, a.y + a.v
  end
end
