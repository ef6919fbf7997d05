"""The look of a report, in light and dark, and its one small script: buttons that play sounds."""

import html

CSS = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d2128;--soft:#626a76;
--edge:#e3e0da;--accent:#2f5fb3;--text:#3b6fd1;--image:#d9822b;--speak:#14937a;--listen:#8a5cc2;
--control:#9aa1ab;--pad:#eceae5;--good:#1b7f4d;--bad:#c0392b}
@media(prefers-color-scheme:dark){:root{--paper:#14171c;--card:#1c2027;--ink:#e8e6e1;--soft:#a0a8b4;
--edge:#323843;--accent:#8ab4f8;--text:#6f9cf0;--image:#eca255;--speak:#3fc0a3;--listen:#b591e8;
--control:#78808c;--pad:#262b33;--good:#5fd197;--bad:#ff8577}}
*{box-sizing:border-box}html{scroll-behavior:smooth}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,
"Segoe UI",Roboto,"Noto Sans",sans-serif}
header,main{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:40px}h1{font-size:2.1rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.02em}
h2{font-size:1.45rem;margin:56px 0 8px;letter-spacing:-.01em}h3{font-size:1.05rem;margin:0 0 8px}
h3 small{font-weight:400;color:var(--soft);margin-left:8px}section>h3{margin-top:28px}
.chart+.legend{margin-top:6px}
p{max-width:72ch;margin:8px 0 14px}.note,figcaption,caption{color:var(--soft);font-size:.86rem}
a{color:var(--accent)}:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.skip{position:absolute;left:-999px}.skip:focus{left:12px;top:12px;background:var(--card);
padding:8px 12px}
nav{display:flex;flex-wrap:wrap;gap:6px 20px;border-bottom:1px solid var(--edge);padding:12px 0}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0 6px}
.facts div{background:var(--card);border:1px solid var(--edge);border-radius:12px;
padding:12px 18px;display:flex;flex-direction:column-reverse;min-width:124px}
.facts dd{margin:0;font-size:1.45rem;font-weight:650;letter-spacing:-.02em}
.facts dt{color:var(--soft);font-size:.82rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;
font-variant-numeric:tabular-nums}caption{text-align:left;padding:0 0 8px}
th{text-align:left;font-weight:600}
.scores{width:100%;margin:6px 0 24px}.scores td,.scores th,.prose td,.prose th,.figures td,
.figures th{padding:6px 10px;border-bottom:1px solid var(--edge)}
.scores thead th{color:var(--soft);font-weight:500;font-size:.82rem}
.scores th a{text-decoration:none;white-space:nowrap}
.bar{min-width:150px}.bar b{display:inline-block;min-width:3.9em}
.bar i{display:inline-block;vertical-align:middle;height:9px;border-radius:5px;
width:calc(var(--w)*100px);background:var(--accent)}
.heat{background:color-mix(in srgb,var(--good) calc((var(--w) - .4)*55%),transparent)}
article{background:var(--card);border:1px solid var(--edge);border-radius:14px;padding:20px 22px;
margin:0 0 20px}.side{display:flex;flex-wrap:wrap;gap:24px;align-items:flex-start}
.side>div{flex:1 1 520px;min-width:0}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(192px,1fr));gap:10px}
.examples.wide{grid-template-columns:repeat(auto-fill,minmax(240px,1fr))}
.example{margin:0;border:1px solid var(--edge);border-radius:10px;padding:10px;display:grid;
grid-template-columns:minmax(0,auto) 16px minmax(0,1fr);gap:6px 8px;align-items:center;
background:var(--paper)}
.example figcaption{grid-column:1/-1;font-size:.78rem;align-self:end}
.right figcaption b{color:var(--good)}.wrong{border-color:var(--bad);border-width:2px}
.wrong figcaption b{color:var(--bad)}
.asked,.got{display:flex;flex-wrap:wrap;gap:5px;align-items:center}.arrow{color:var(--soft)}
.word{font-size:1.05rem;font-weight:600;background:var(--pad);border-radius:6px;padding:1px 8px}
.said{font-size:.8rem;color:var(--soft);width:100%}
.pixels{image-rendering:pixelated;width:64px;height:64px;border-radius:6px;display:block}
.sound button{padding:0;border:0;border-radius:6px;overflow:hidden;cursor:pointer;display:block;
position:relative;background:#0a0c1e;line-height:0;max-width:100%}
.sound img{height:44px;max-width:100%;opacity:.85}.sound button:hover img,.playing img{opacity:1}
.sound button::after{content:"\\25b6";position:absolute;left:5px;bottom:13px;color:#fff;
font-size:11px;text-shadow:0 0 4px #000}.sound button.playing::after{content:"\\25a0"}
.noscript audio{width:170px;height:34px}
details{margin-top:12px}summary{cursor:pointer;color:var(--accent);font-size:.9rem;
margin-bottom:10px}
.confusion{font-size:.76rem}.confusion caption{max-width:300px}.confusion th{color:var(--soft);
font-weight:500;text-align:center;padding:2px 4px}
.confusion tbody td{width:25px;height:25px;min-width:25px;text-align:center;border:1px solid
var(--paper);background:color-mix(in srgb,var(--bad) calc(var(--w)*90%),var(--pad))}
.confusion td.hit{background:color-mix(in srgb,var(--good) calc(var(--w)*55%),var(--pad))}
.charts{margin-top:18px;display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px}
.charts figure{margin:0;background:var(--card);border:1px solid var(--edge);border-radius:14px;
padding:16px 18px;min-width:0}.charts figcaption{color:var(--ink)}
.chart{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--edge)}.line{fill:none;stroke-width:2;stroke-linejoin:round}
.raw{fill:none;stroke-width:1;opacity:.3}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;padding:0;margin:8px 0 0;
font-size:.82rem;color:var(--soft)}.legend i{display:inline-block;width:12px;height:12px;
border-radius:3px;margin-right:6px;vertical-align:-1px}
.packed{width:100%;height:auto;display:block;margin-top:10px}rect.pad{fill:var(--pad)}
.document{font-size:.74rem;margin:8px 0}.document td{background:color-mix(in srgb,var(--c) 24%,
var(--card));border:2px solid var(--paper);padding:3px 5px;text-align:center;white-space:nowrap;
vertical-align:top;line-height:1.35}.document th{padding-right:10px;font-weight:500;
color:var(--soft);vertical-align:top}.document .quiet{font-style:italic;opacity:.75}
.document td.weight{background:none;color:var(--soft)}
.tables{display:flex;flex-wrap:wrap;gap:28px;margin-top:24px;align-items:flex-start}
.figures caption{font-weight:600;color:var(--ink);font-size:.95rem}.figures th{font-weight:400}
.figures td{text-align:right}.prose td{vertical-align:top}
code{font-size:.88em;background:var(--pad);padding:1px 4px;border-radius:4px}
#sources{padding-bottom:60px;overflow-wrap:anywhere}
#sources h3{margin-top:8px}
@media print{nav,.skip{display:none}article{break-inside:avoid}}
"""

# Without scripts the browser's own players show; one sound plays at a time.
SCRIPT = """
document.querySelectorAll('.sound').forEach(s=>{const b=s.querySelector('button'),
a=s.querySelector('audio');a.controls=false;
a.onended=a.onpause=()=>b.classList.remove('playing');
b.onclick=()=>{if(!a.paused){a.pause();a.currentTime=0;return}
document.querySelectorAll('audio').forEach(o=>{o.pause();o.currentTime=0});
b.classList.add('playing');a.play()}})
"""


def page(title: str, body: str, css: str = "") -> str:
  """A whole document in the look of a report; css: rules of its own."""
  title = html.escape(title)
  return (f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width,initial-scale=1">'
          f"<title>{title}</title><style>{CSS}main{{padding-top:28px}}{css}</style></head>"
          f"<body><main><h1>{title}</h1>{body}</main></body></html>\n")
