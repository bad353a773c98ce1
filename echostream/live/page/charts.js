// The two pictures: what sounded when, and what each chunk cost.
const WINDOW_S = 20;

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function clear(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui, sans-serif";
  return { pen, width, height };
}

// `rows`: [{color, spans: [{from, to, level}]}], times in seconds; `now` is the right edge.
export function drawTimeline(canvas, rows, now) {
  const { pen, width, height } = clear(canvas);
  const left = Math.max(now - WINDOW_S, 0);
  const x = (time) => ((time - left) / WINDOW_S) * width;
  const floor = height - 18;
  pen.fillStyle = color("--soft");
  pen.strokeStyle = color("--line");
  for (let mark = Math.ceil(left / 5) * 5; mark <= left + WINDOW_S; mark += 5) {
    pen.beginPath();
    pen.moveTo(x(mark), 0);
    pen.lineTo(x(mark), floor);
    pen.stroke();
    pen.fillText(`${mark} s`, Math.min(x(mark) + 3, width - 30), height - 4);
  }
  const each = floor / Math.max(rows.length, 1);
  rows.forEach((row, index) => {
    pen.fillStyle = color(row.color);
    const middle = each * (index + 0.5);
    for (const { from, to, level } of row.spans) {
      if (to < left) continue;
      const tall = Math.max(2, each * 0.85 * level);
      pen.fillRect(x(Math.max(from, left)), middle - tall / 2, Math.max(x(to) - x(Math.max(from, left)), 1), tall);
    }
  });
}

// `curves`: [{color, points: [{sourceMs, [field]: ms}]}].
export function drawCurves(canvas, curves, field) {
  const { pen, width, height } = clear(canvas);
  const floor = height - 18;
  const all = curves.flatMap((curve) => curve.points);
  const last = Math.max(10000, ...all.map((point) => point.sourceMs));
  const most = Math.max(20, ...all.map((point) => point[field]));
  pen.fillStyle = color("--soft");
  pen.strokeStyle = color("--line");
  pen.strokeRect(0.5, 0.5, width - 1, floor - 1);
  pen.fillText(`${Math.round(most)} ms`, 5, 14);
  pen.fillText("0 s", 5, height - 4);
  pen.fillText(`${Math.round(last / 1000)} s of source`, width - 90, height - 4);
  for (const curve of curves) {
    pen.strokeStyle = color(curve.color);
    pen.lineWidth = 2;
    pen.beginPath();
    for (const point of curve.points) {
      pen.lineTo((point.sourceMs / last) * width, floor - (point[field] / most) * (floor - 4));
    }
    pen.stroke();
  }
  pen.lineWidth = 1;
}
